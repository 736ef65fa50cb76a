"""Records of an evaluation are read as they were written, and damage is named."""

import dataclasses
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.errors import DataError
from retool_env.evaluation import read_episodes, read_record
from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import (
    EpisodeRecord,
    EvalRecord,
    read_usage,
    rules_to_json,
    short_value,
)
from retool_env.execution import Execution, Fault, Outcome
from retool_env.problem import Problem
from retool_env.rollout.policy import Usage
from retool_env.rules import Rules
from retool_env.transcript import Span, StopReason, Transcript, write_transcripts

PROBLEM = Problem("own/1", "1 + 1?", "2")


def transcript(answer="2", tokens=3, problem=PROBLEM, **more) -> Transcript:
    ids = tuple(range(1000, 1000 + tokens))
    failed = Execution(Outcome.RUNTIME_ERROR, "", "ZeroDivisionError: division by zero")
    spans = (
        Span("prompt", problem.question, (1, 2)),
        Span("model", "<code>1/0</code>", ids, (-0.5,) * tokens, weight_version=0),
        Span("env", "<interpreter>error</interpreter>", (7,), execution=failed, form="plain"),
        Span("model", f"<answer>{answer}</answer>", ids, (-0.5,) * tokens, weight_version=0),
    )
    more = {"stop_reason": StopReason.ANSWERED, "answer": answer, "correct": answer == "2"} | more
    return Transcript(problem, spans, **more)


def under_fault(injected, real=None) -> Transcript:
    """The transcript, with a fault ordered for its call."""
    shown = Execution(Outcome.OK, "6\n", fault=Fault("wrong_value", injected, real))
    made = transcript()
    spans = [dataclasses.replace(span, execution=span.execution and shown) for span in made.spans]
    return dataclasses.replace(made, spans=tuple(spans))


def episode(sample=0, **more) -> EpisodeRecord:
    return EpisodeRecord("m", "own/1", sample, 0, transcript(**more), Usage(2, 30, 4))


def record(**more) -> EvalRecord:
    fields = {
        "name": "first",
        "model": ModelIdentity("m", "api", url="http://h/v1"),
        "env": "ReTool-JSONL-v0",
        "settings": {},
        "rules": rules_to_json(Rules(interpreter=False)),
        "prompt": "{query}",
        "problems": 1,
        "fingerprint": "f",
        "sampling": {"temperature": 1.0},
        "k": 1,
        "seed": 0,
    }
    return EvalRecord(**fields | more)


def written(folder, *episodes):
    with open(folder / "episodes.jsonl", "a") as file:
        file.writelines(json.dumps(each.to_json()) + "\n" for each in episodes)
    return list(read_episodes(folder))


def test_an_episode_is_read_as_it_was_written(tmp_path):
    first = episode()
    assert written(tmp_path, first) == [first]
    line = json.loads((tmp_path / "episodes.jsonl").read_text())
    assert line["status"] == "finished" and line["correct"] is True
    assert line["calls"] == [
        {
            "outcome": "runtime_error",
            "exception": "ZeroDivisionError",
            "form": "plain",
            "program": "1/0",
            "fault": None,
        }
    ]


@pytest.mark.parametrize("real", [None, Execution(Outcome.OK, "5\n")])
def test_the_fault_of_a_call_is_among_its_facts(tmp_path, real):
    first = dataclasses.replace(episode(), transcript=under_fault(real is not None, real))
    assert written(tmp_path, first) == [first]
    [call] = json.loads((tmp_path / "episodes.jsonl").read_text())["calls"]
    assert call["fault"] == {"kind": "wrong_value", "injected": real is not None}


def test_of_several_lines_of_an_episode_the_last_one_counts(tmp_path):
    failed = episode(answer=None, stop_reason=StopReason.INFRASTRUCTURE, correct=None)
    assert failed.failed and failed.to_json()["status"] == "failed"
    again, other = episode(answer="3"), episode(sample=1)
    assert written(tmp_path, failed, other, again) == [other, again]


def test_without_tokens_their_number_stays(tmp_path):
    written(tmp_path, episode(tokens=5))
    [read] = read_episodes(tmp_path, tokens=False)
    assert len(read.transcript.completion_ids) == 11 and not any(read.transcript.completion_ids)
    assert read.transcript.spans[1].logprobs is None
    assert read.transcript.response_text == transcript(tokens=5).response_text


def test_many_episodes_need_little_memory_without_tokens(tmp_path):
    line = json.dumps(episode(tokens=500).to_json())
    with open(tmp_path / "episodes.jsonl", "w") as file:
        for sample in range(400):
            file.write(line.replace('"sample": 0', f'"sample": {sample}') + "\n")
    tracemalloc.start()
    episodes = list(read_episodes(tmp_path, tokens=False))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(episodes) == 400
    assert held / 400 < 25_000  # bytes; 40,000 episodes of this length: less than 1 GB


def test_a_line_whose_writer_was_killed_is_left_out(tmp_path):
    written(tmp_path, episode())
    with open(tmp_path / "episodes.jsonl", "a") as file:
        file.write(json.dumps(episode(sample=1).to_json())[:200])
    assert [each.sample for each in read_episodes(tmp_path)] == [0]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "nonsense", '{"schema": 99}', '{"schema": 1, "model": "m"}', "null"]
)
def test_a_damaged_line_is_named(line, tmp_path):
    written(tmp_path, episode())
    with open(tmp_path / "episodes.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"episodes.jsonl, line 2 is not an episode"):
        list(read_episodes(tmp_path))


def test_folders_of_earlier_versions_are_read(tmp_path):
    write_transcripts(tmp_path / "transcripts.jsonl", [transcript(), transcript("3")])
    (tmp_path / "results.json").write_text('{"command": {"model": "runs/x", "seed": "4"}}')
    first, second = read_episodes(tmp_path)
    assert (first.model, first.sample, first.seed) == ("runs/x", 0, 4)
    assert (second.sample, second.transcript) == (1, transcript("3"))


def test_what_was_evaluated_is_read_as_it_was_written(tmp_path):
    written = record(price={"prompt": 1.0, "completion": 2.0, "cached": None}, k=4)
    (tmp_path / "eval.json").write_text(json.dumps(written.to_json()))
    assert read_record(tmp_path) == written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"),
        ("[]", r"is damaged: it holds \[\], and not an object"),
        ("{}", "is damaged: the field schema is missing"),
        ('{"schema": 2}', "a newer retool-env wrote it"),
        ('{"schema": 1.0}', "schema must be a whole number"),
        ('{"schema": 1}', "the fields name, model, env, .* are missing"),
        (None, "is not the folder of an evaluation"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(text, words, tmp_path):
    if text is not None:
        (tmp_path / "eval.json").write_text(text)
    with pytest.raises(DataError, match=words) as error:
        read_record(tmp_path)
    assert "eval.json" in str(error.value)


def test_records_differ_in_the_settings_that_change_an_episode():
    first = record()
    for change in ({"k": 9}, {"problems": 5}, {"versions": {"python": "4"}}, {"name": "x"}):
        assert first.differences(record(**change)) == []
    rules = rules_to_json(Rules(interpreter=False, max_calls=3))
    assert record(rules=rules).differences(first) == ["rules.max_calls: 3, not 8"]
    assert record(seed=1).differences(first) == ["seed: 1, not 0"]
    other = ModelIdentity("m", "checkpoint", weights="ab")
    assert record(model=other).differences(first) == ["weights: 'ab', not None"]
    # A record that went through a file is the same.
    assert first.differences(EvalRecord.from_json(json.loads(json.dumps(first.to_json())))) == []


def test_a_digest_is_shown_by_its_beginning():
    assert short_value("0123456789abcdef" * 4) == "0123456789ab…"
    assert short_value("0123") == "'0123'"


def test_a_reward_function_is_recorded_by_its_name():
    def half(transcript):
        return 0.5

    assert rules_to_json(Rules(reward=half))["reward"] == "half"
    assert json.dumps(rules_to_json(Rules(reward=half)))


@given(st.lists(st.builds(Usage, *[st.integers(0, 10**9)] * 5), max_size=5))
def test_usage_adds_up(tmp_path_factory, usages):
    folder = tmp_path_factory.mktemp("usage")
    lines = [json.dumps(dataclasses.asdict(usage)) + "\n" for usage in usages]
    (folder / "usage.jsonl").write_text("".join(lines))
    total = read_usage(folder)
    assert total.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
    assert total.requests == sum(usage.requests for usage in usages)


def test_a_field_that_only_the_earlier_start_had_is_a_difference():
    earlier = record(sampling={"temperature": 1.0, "reasoning_effort": "high"})
    later = record(sampling={"temperature": 1.0})
    assert later.differences(earlier) == ["sampling.reasoning_effort: None, not 'high'"]
    assert earlier.differences(later) == ["sampling.reasoning_effort: 'high', not None"]


def test_a_record_without_a_newer_setting_had_its_default():
    rules = rules_to_json(Rules(interpreter=False))
    older = {name: value for name, value in rules.items() if name != "max_void"}
    assert record(rules=rules).differences(record(rules=older)) == []
    newer = record(rules=rules | {"max_void": 3})
    assert newer.differences(record(rules=older)) == ["rules.max_void: 3, not None"]


@pytest.mark.parametrize(
    "change",
    [
        *({"problems": "x"}, {"k": None}, {"sampling": 3}, {"seconds": "1"}, {"model": []}),
        *({"fingerprint": 1e999}, {"price": True}, {"env": None}, {"prompt": 1}, {"revision": "4"}),
        {"model": {"name": "m", "kind": "hub", "weights": [1]}},
    ],
)
def test_a_field_of_another_type_is_damage(change, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps(record().to_json() | change))
    with pytest.raises(DataError, match="is damaged"):
        read_record(tmp_path)


def test_a_folder_with_the_same_weights_is_the_same_model():
    first = record(model=ModelIdentity("a/tiny", "checkpoint", weights="ab"))
    moved = record(model=ModelIdentity("b/tiny/", "checkpoint", weights="ab"))
    assert first.differences(moved) == []
    other = record(model=ModelIdentity("a/tiny", "checkpoint", weights="cd"))
    assert first.differences(other) == ["weights: 'ab', not 'cd'"]


@pytest.mark.parametrize("results", [None, "{}", "[]", "x", '{"command": {"seed": null}}'])
def test_an_older_folder_is_read_without_its_results_and_without_its_half_line(results, tmp_path):
    write_transcripts(tmp_path / "transcripts.jsonl", [transcript()])
    with open(tmp_path / "transcripts.jsonl", "a") as file:
        file.write('{"half')
    if results is not None:
        (tmp_path / "results.json").write_text(results)
    [found] = read_episodes(tmp_path)
    assert (found.problem, found.sample, found.seed) == ("own/1", 0, 0)
