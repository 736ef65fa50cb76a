"""The record of an episode: its derived values, its JSON form, and its invariants."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.problems import Problem
from retool_env.provenance import REVISION
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import (
    FORMAT,
    Span,
    StopReason,
    Transcript,
    check_transcript,
    read_transcripts,
    write_transcripts,
)

PROBLEM = Problem(id="p", question="6 * 7?", answer="42", metadata={"level": 3, "subject": "π"})
FAILED = Execution(Outcome.RUNTIME_ERROR, "", "NameError: name 'x' is not defined")
PRINTED = Execution(Outcome.OK, "42\n")

WITH_IDS = Transcript(
    PROBLEM,
    (
        Span("prompt", "6 * 7?", (1, 2, 3)),
        Span("model", "Hm <code>x</code>!", (4, 5, 6), (-0.5, -1.0, -0.25), surplus=1),
        Span("env", "[NameError]", (7, 8), execution=FAILED),
        Span("model", "<code>print(42)</code>", (9,), (0.0,)),
        Span("env", "[42]", (10,), execution=PRINTED),
        Span("model", "<answer>42</answer>", (11, 0), (-2.0, -3.0)),
    ),
    stop_reason=StopReason.ANSWERED,
    answer="42",
    correct=True,
    reward=1.0,
)
TEXT = dataclasses.replace(
    WITH_IDS,
    spans=tuple(dataclasses.replace(s, token_ids=None, logprobs=None) for s in WITH_IDS.spans),
)


def with_span(index: int, **changes) -> Transcript:
    spans = list(WITH_IDS.spans)
    spans[index] = dataclasses.replace(spans[index], **changes)
    return dataclasses.replace(WITH_IDS, spans=tuple(spans))


# --- what is derived ----------------------------------------------------------------------------


def test_ids_mask_and_logprobs_are_of_one_length():
    assert WITH_IDS.prompt_ids == [1, 2, 3]
    assert WITH_IDS.completion_ids == [4, 5, 6, 7, 8, 9, 10, 11, 0]
    assert WITH_IDS.loss_mask == [1, 1, 1, 0, 0, 1, 0, 1, 1]
    assert WITH_IDS.logprobs == [-0.5, -1.0, -0.25, 0.0, 0.0, 0.0, 0.0, -2.0, -3.0]


def test_text():
    assert WITH_IDS.text == "6 * 7?" + WITH_IDS.response_text
    assert WITH_IDS.response_text.startswith("Hm <code>x</code>![NameError]<code>")
    assert [span.author for span in WITH_IDS.response] == ["model", "env", "model", "env", "model"]


def test_calls_with_their_positions_in_the_response():
    first, second = WITH_IDS.calls
    assert (first.program, first.ok, first.position) == ("x", False, 3)
    assert (second.program, second.ok) == ("print(42)", True)
    assert (first.form, second.form) == ("plain", "plain")
    assert WITH_IDS.response_text[second.position :].startswith("<code>print(42)")
    assert TEXT.calls == WITH_IDS.calls
    assert [turn.content for turn in WITH_IDS.turns] == ["x", "print(42)", "42"]


def test_a_program_without_a_result_is_no_call():
    """The last call may lack a result: the sandbox failed, or the episode was cut before it ran."""
    cut = dataclasses.replace(
        WITH_IDS, spans=WITH_IDS.spans[:4], stop_reason=StopReason.INFRASTRUCTURE, reward=None
    )
    check_transcript(cut)
    assert len(cut.calls) == 1


def test_a_notice_is_no_call():
    spans = (Span("prompt", "?"), Span("model", "hm"), Span("env", "[Go on.]"), *TEXT.spans[1:3])
    [call] = dataclasses.replace(TEXT, spans=spans).calls
    assert call.program == "x" and call.position == len("hm[Go on.]Hm ")


def test_text_alone_has_no_ids():
    check_transcript(TEXT)
    for name in ("prompt_ids", "completion_ids", "loss_mask", "logprobs"):
        with pytest.raises(ValueError, match=r"no token ids.*can't be trained on"):
            getattr(TEXT, name)


@pytest.mark.parametrize("reason", StopReason)
def test_every_end_is_a_termination_or_a_truncation(reason):
    cut = {"token_budget", "character_budget", "time_budget", "cancelled", "infrastructure_failure"}
    assert reason.terminated is (reason not in cut)


# --- files --------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
EXECUTIONS = st.builds(
    Execution, st.sampled_from(Outcome), TEXTS, TEXTS, TEXTS, st.floats(0, 1e6, allow_nan=False)
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def optional(values):
    return st.none() | values


SPANS = st.builds(
    Span,
    st.sampled_from(["prompt", "model", "env"]),
    TEXTS,
    optional(st.lists(st.integers(0, 2**31), max_size=5).map(tuple)),
    optional(st.lists(FLOATS, max_size=5).map(tuple)),
    st.integers(0, 9),
    optional(EXECUTIONS),
    st.floats(0, 1e6),
)
FILLED = TEXTS.filter(str.strip)
PROBLEMS = st.builds(
    Problem, FILLED, FILLED, FILLED, st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=3)
)
TRANSCRIPTS = st.builds(
    Transcript,
    PROBLEMS,
    st.lists(SPANS, max_size=5).map(tuple),
    st.booleans(),
    optional(st.sampled_from(StopReason)),
    optional(TEXTS),
    optional(st.booleans()),
    optional(st.integers(0, 1000)),
    optional(FLOATS),
)


@settings(deadline=None)
@given(transcript=TRANSCRIPTS)
def test_json_and_back(transcript):
    again = Transcript.from_json(json.loads(json.dumps(transcript.to_json())))
    assert again == transcript
    # Fields that comparisons ignore are also kept, with their types.
    for new, old in zip(again.spans, transcript.spans, strict=True):
        assert new.seconds == old.seconds
        assert old.execution is None or new.execution.duration == old.execution.duration
        assert old.execution is None or type(new.execution.outcome) is Outcome
    assert type(again.stop_reason) is type(transcript.stop_reason)
    assert hash(again) == hash(transcript)


def test_a_file_holds_transcripts_in_order_and_grows(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    write_transcripts(path, [WITH_IDS, TEXT])
    write_transcripts(str(path), [WITH_IDS])
    assert list(read_transcripts(path)) == [WITH_IDS, TEXT, WITH_IDS]
    assert len(path.read_text().splitlines()) == 3


def test_half_a_line_that_a_killed_writer_left_stays_a_line_of_its_own(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    write_transcripts(path, [TEXT])
    whole = path.read_text()
    path.write_text(whole + whole[:100])
    write_transcripts(path, [WITH_IDS])
    write_transcripts(path, [TEXT])
    first, half, *others = path.read_text().splitlines()
    assert (first, half) == (whole[:-1], whole[:100])
    path.write_text("\n".join(others))
    assert list(read_transcripts(path)) == [WITH_IDS, TEXT]


@pytest.mark.parametrize("line", ["{", "[]", "{}", "[" * 200_000])
def test_a_line_that_is_no_transcript_is_named(tmp_path, line):
    path = tmp_path / "transcripts.jsonl"
    write_transcripts(path, [TEXT])
    path.write_text(path.read_text() + line)
    with pytest.raises(ValueError, match=r"transcripts.jsonl, line 2: not a transcript"):
        list(read_transcripts(path))


def test_a_file_from_before_tracebacks_reads(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    failed = dataclasses.replace(FAILED, traceback=f"  frames\n{FAILED.error}")
    write_transcripts(path, [with_span(2, execution=failed)])
    [again] = read_transcripts(path)
    assert again.calls[0].execution == failed
    record = json.loads(path.read_text())
    for span in record["spans"]:
        if span["execution"] is not None:
            del span["execution"]["traceback"]
    path.write_text(json.dumps(record) + "\n")
    assert list(read_transcripts(path)) == [WITH_IDS]


# --- invariants ---------------------------------------------------------------------------------

BROKEN = {
    "no spans": (dataclasses.replace(WITH_IDS, spans=()), "must begin with its prompt"),
    "no prompt": (
        dataclasses.replace(WITH_IDS, spans=WITH_IDS.spans[1:]),
        "must begin with its prompt",
    ),
    "two prompts": (with_span(2, author="prompt", execution=None), r"span 2.*only the first"),
    "same author twice": (
        dataclasses.replace(WITH_IDS, spans=(*WITH_IDS.spans, WITH_IDS.spans[-1])),
        r"span 6.*same author",
    ),
    "a span without ids": (with_span(2, token_ids=None), r"span 2.*every span has token ids"),
    "a prompt without ids": (with_span(0, token_ids=None), r"span 1.*every span has token ids"),
    "no log-probs": (with_span(1, logprobs=None), r"span 1.*one log-prob"),
    "one log-prob short": (with_span(1, logprobs=(-0.5, -1.0)), r"span 1.*one log-prob"),
    "a form on a model's span": (with_span(1, form="plain"), r"span 1.*environment's span"),
    "log-prob above 0": (with_span(3, logprobs=(0.1,)), r"span 3.*not above 0"),
    "log-prob NaN": (with_span(3, logprobs=(math.nan,)), r"span 3.*finite"),
    "log-prob of minus infinity": (with_span(3, logprobs=(-math.inf,)), r"span 3.*finite"),
    "log-probs of the environment": (
        with_span(2, logprobs=(-1.0, -1.0)),
        r"span 2 \(env\).*did not sample",
    ),
    "log-probs of the prompt": (
        with_span(0, logprobs=(-1.0,) * 3),
        r"span 0 \(prompt\).*did not sample",
    ),
    "a result of the model's": (with_span(1, execution=PRINTED), r"span 1.*environment's span"),
    "log-probs without ids": (
        dataclasses.replace(
            TEXT,
            spans=(TEXT.spans[0], dataclasses.replace(TEXT.spans[1], logprobs=(-1.0,))),
        ),
        r"span 1.*one log-prob",
    ),
    "weights of fewer tokens than there are": (
        with_span(1, weight_version=4, weight_runs=((4, 1), (6, 1))),
        r"span 1.*sum to its tokens",
    ),
    "runs that begin with another version": (
        with_span(1, weight_version=5, weight_runs=((4, 1), (6, 2))),
        r"span 1.*first token",
    ),
    "weights of the environment": (
        with_span(2, weight_runs=((4, 1), (6, 1))),
        r"span 2 \(env\).*and no weights",
    ),
    "a scored infrastructure failure": (
        dataclasses.replace(WITH_IDS, stop_reason=StopReason.INFRASTRUCTURE),
        "unscored episode",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_invariants_are_named(name):
    transcript, message = BROKEN[name]
    with pytest.raises(ValueError, match=message):
        check_transcript(transcript)


RUNS = with_span(1, weight_version=4, weight_runs=((4, 1), (6, 2)))
"""An episode whose first turn continued under newer weights after one token."""


def test_a_turn_of_several_weights_is_one_span_with_a_version_a_token(tmp_path):
    check_transcript(RUNS)
    assert RUNS.spans[1].weights == ((4, 1), (6, 2)) and len(RUNS.turns) == 3
    write_transcripts(tmp_path / "t.jsonl", [RUNS])
    assert list(read_transcripts(tmp_path / "t.jsonl")) == [RUNS]


def test_a_turn_of_one_weight_version_is_written_as_before_there_were_several():
    one = with_span(1, weight_version=4)
    assert one.spans[1].weights == ((4, 3),) and one.spans[0].weights == ()
    assert all("weight_runs" not in span for span in one.to_json()["spans"])
    assert Transcript.from_json(one.to_json()) == one


def test_sound_transcripts_pass():
    check_transcript(WITH_IDS)
    check_transcript(with_span(3, logprobs=(1e-6,)))  # a rounding error
    check_transcript(dataclasses.replace(WITH_IDS, spans=WITH_IDS.spans[:1], stop_reason=None))


FORMATS = Path(__file__).parent / "golden"


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_a_file_of_every_version_is_read(version):
    """The code of each version wrote its file, which never changes."""
    [transcript] = read_transcripts(FORMATS / f"format-{version}.jsonl")
    check_transcript(transcript)
    assert transcript.stop_reason is StopReason.ANSWERED and transcript.answer == "42"
    [call] = transcript.calls
    assert (call.program, call.execution.stdout) == ("print(6 * 7)", "42\n")
    assert call.form == ("plain" if version < 3 else "mended:dedent")
    assert transcript.revision == (1 if version < 3 else 2)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_program_of_an_older_record_is_what_was_run_then(version):
    text = "<code>\n```any\n  x\n```\n</code>"
    spans = (Span("prompt", "?"), Span("model", text), Span("env", "", execution=FAILED))
    record = dataclasses.replace(TEXT, spans=spans).to_json()
    record["format"] = version
    record["spans"][2]["form"] = "mended:dedent"
    record["spans"][1]["text"] = "<code>\n  x\n</code>"
    if version < 3:
        for span in record["spans"]:
            del span["form"]
    [call] = Transcript.from_json(record).calls
    assert (call.program, call.form) == (
        ("  x", "plain") if version < 3 else ("x", "mended:dedent")
    )
    record["spans"][1]["text"] = text
    [call] = Transcript.from_json(record).calls
    assert version == 3 or (call.program, call.form) == ("  x", "fenced")


def test_a_transcript_says_its_format_and_revision():
    record = TEXT.to_json()
    assert (record["format"], record["revision"]) == (FORMAT, REVISION)


@pytest.mark.parametrize("version", [0, FORMAT + 1, "2", None, 1.5])
def test_a_format_that_is_not_known_is_named(tmp_path, version):
    path = tmp_path / "transcripts.jsonl"
    path.write_text(json.dumps({**TEXT.to_json(), "format": version}) + "\n")
    with pytest.raises(ValueError, match=r"line 1.*format .* is unknown"):
        list(read_transcripts(path))


@pytest.mark.parametrize("runs", ["x", None, 3, {"a": 1}, [[4]], [[4, 1, 1]], [4, 1], ["ab"]])
def test_weight_runs_that_are_no_pairs_are_named(tmp_path, runs):
    record = RUNS.to_json()
    record["spans"][1]["weight_runs"] = runs
    path = tmp_path / "transcripts.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"line 1.*weight_runs must be pairs"):
        list(read_transcripts(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("correct", ""), ("correct", {"a": 1}), ("answer", 42), ("reward", "1"), ("text", {})),
        *(("text", None), ("surplus", "x"), ("seconds", []), ("interpreter", None)),
    ],
)
def test_a_value_of_another_type_is_named(name, value):
    record = TEXT.to_json()
    (record if name in record else record["spans"][0])[name] = value
    with pytest.raises(ValueError, match=f"{name}.* has the wrong value"):
        Transcript.from_json(record)
