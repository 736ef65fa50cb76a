"""The turn contract is one table, run for text actions and for id actions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.episode import Episode, Generation, GradeAnswer, RunProgram
from retool_env.problems import Problem
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Limits, Outcome
from retool_env.tokens import tokens_of_turn
from retool_env.transcript import StopReason, Transcript, check_transcript

PROBLEM = Problem(id="p", question="6 * 7?", answer="42")


class PairTokenizer:
    """A tokenizer of two characters per token, so that tags may end inside tokens."""

    eos_token_id = 0
    chat_template = None

    def __init__(self) -> None:
        self._ids: dict[str, int] = {"<eos>": 0}

    def encode(self, text, **_):
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        return [self._ids.setdefault(pair, len(self._ids)) for pair in pairs]

    def decode(self, token_ids, **_):
        texts = {i: text for text, i in self._ids.items()}
        return "".join(texts[i] for i in token_ids)

    def apply_chat_template(self, conversation, **_):
        raise AssertionError("no template")


@dataclass
class Row:
    """One turn and its expected meaning."""

    name: str
    text: str
    needs: str | None = None  # the program, or the answer
    kind: type | None = None
    stop: StopReason | None = None
    rules: Rules = Rules()  # noqa: RUF009  frozen
    executed: str | None = None  # the error of an execution that needs no sandbox
    form: str = "plain"


CODE, ANSWER = RunProgram, GradeAnswer
TEXT_ONLY = Rules(interpreter=False)
GO_ON = Rules(void_turn="continue")
TABLE = [
    Row("code", "so <code>print(1)</code>", "print(1)", CODE),
    Row(
        "fenced code", "<code>\n```python\nprint(1)\n```\n</code>", "print(1)", CODE, form="fenced"
    ),
    Row("indented code", "<code>\n  a\n</code>", "a", CODE, form="mended:dedent"),
    Row("prompts", "<code>\n>>> a\n1\n</code>", "a", CODE, form="mended:prompts"),
    Row("a BOM", "<code>\ufeffa</code>", "a", CODE, form="mended:marks"),
    Row("answer", "it is <answer>\\boxed{42}</answer>", "\\boxed{42}", ANSWER),
    Row("surplus after code", "<code>a</code>print(2)<answer>1</answer>", "a", CODE),
    Row("surplus after answer", "<answer>1</answer> or <answer>42</answer>", "1", ANSWER),
    Row("both, code closes first", "<answer>7 <code>b</code> </answer>", "b", CODE),
    Row("both, answer closes first", "<code>b <answer>7</answer> </code>", "7", ANSWER),
    Row("two openings", "the <code> tag: <code>c</code>", "c", CODE),
    Row("closing without opening", "oh </code>", stop=StopReason.VOID_TURN),
    Row("answer closed without opening", "42</answer>", stop=StopReason.VOID_TURN),
    Row("unclosed code", "<code>print(1)", stop=StopReason.VOID_TURN),
    Row("unclosed answer", "<answer>42", stop=StopReason.VOID_TURN),
    Row("inside a string literal", "<code>print('</code>')</code>", "print('", CODE),
    Row("inside think", "<think>try <code>d</code> first</think>", "d", CODE),
    Row("answer inside think", "<think>say <answer>4</answer>", "4", ANSWER),
    Row("empty code", "<code>\n```python\n\n```\n</code>", executed="SyntaxError"),
    Row("comments only", "<code># nothing</code>", executed="SyntaxError"),
    Row("empty answer", "<answer> </answer>", "", ANSWER),
    Row("no tag", "hmm", stop=StopReason.VOID_TURN),
    Row("no tag, may go on", "hmm", rules=GO_ON),
    Row("nothing at all", "", stop=StopReason.STOPPED),
    Row("nothing at all, may go on", "", stop=StopReason.STOPPED, rules=GO_ON),
    Row("text only: answer", "<answer>42</answer>", "42", ANSWER, rules=TEXT_ONLY),
    Row("text only: code is text", "<code>e</code>", stop=StopReason.VOID_TURN, rules=TEXT_ONLY),
    Row(
        "text only: code, then answer",
        "<code>e</code> <answer>4</answer>",
        "4",
        ANSWER,
        rules=TEXT_ONLY,
    ),
    Row("case counts", "<CODE>f</CODE>", stop=StopReason.VOID_TURN),
    Row("spaces in tags count", "<code >f</code >", stop=StopReason.VOID_TURN),
    Row("Unicode", "π <code>print('∑')</code>", "print('∑')", CODE),
]


def start(rules: Rules, by_ids: bool) -> tuple[Episode, PairTokenizer | None]:
    tokenizer = PairTokenizer() if by_ids else None
    if by_ids:
        rules = dataclasses.replace(rules, max_tokens=rules.max_tokens or 10_000)
    return Episode(PROBLEM, rules, tokenizer), tokenizer


def act(episode: Episode, tokenizer: PairTokenizer | None, text: str, eos: bool = True):
    """Take a turn as text or as ids; without a tag, the model itself ends the turn."""
    if tokenizer is None:
        return episode.act(text)
    ids = tokenizer.encode(text)
    stop_reason = "tag"
    if eos and not any(tag in text for tag in ("</code>", "</answer>")):
        ids.append(tokenizer.eos_token_id)
        stop_reason = "eos"
    return episode.act_ids(Generation(tuple(ids), (-0.5,) * len(ids), stop_reason))


def outline(transcript: Transcript) -> list[tuple[str, str]]:
    """Authors and texts of the spans, without surplus characters, which only tokens have."""
    return [(s.author, s.text[: len(s.text) - s.surplus]) for s in transcript.spans]


@pytest.mark.parametrize("by_ids", [False, True], ids=["text", "ids"])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_turn_has_one_meaning(row, by_ids):
    episode, tokenizer = start(row.rules, by_ids)
    need = act(episode, tokenizer, row.text)
    if row.kind is None:
        assert need is None
    else:
        assert isinstance(need, row.kind)
        assert (need.program if row.kind is CODE else need.answer) == row.needs
    assert episode.transcript.stop_reason is row.stop
    if row.kind is CODE:
        episode.executed(Execution(Outcome.OK, "1\n"))
        [call] = episode.transcript.calls
        assert (call.program, call.form) == (row.needs, row.form)
        assert episode.transcript.spans[-1].form == row.form
    if row.executed:
        [call] = episode.transcript.calls
        assert not call.ok and row.executed in call.execution.error
    check_transcript(episode.transcript)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_text_and_ids_give_the_same_episode(row):
    outlines = []
    for by_ids in (False, True):
        episode, tokenizer = start(row.rules, by_ids)
        need = act(episode, tokenizer, row.text)
        if isinstance(need, RunProgram):
            episode.executed(Execution(Outcome.OK, "1\n"))
            need = act(episode, tokenizer, "<answer>42</answer>?")
        if isinstance(need, GradeAnswer):
            episode.graded(need.answer == "42")
        t = episode.transcript
        outlines.append((outline(t), t.stop_reason, t.reward, t.correct, t.answer, len(t.calls)))
    assert outlines[0] == outlines[1]


def test_the_token_that_completes_the_tag_is_kept_whole_and_nothing_after_it():
    episode, tokenizer = start(Rules(), True)
    text = "<code>ab</code>!?and more"  # the last token of the tag is ">!"
    need = act(episode, tokenizer, text)
    assert need == RunProgram("ab", Limits())
    span = episode.transcript.spans[-1]
    assert span.text == "<code>ab</code>!" and span.surplus == 1
    assert tokenizer.decode(span.token_ids) == span.text
    assert len(span.logprobs) == len(span.token_ids)


def test_a_turn_of_several_weights_keeps_the_version_of_each_kept_token():
    tokenizer = PairTokenizer()
    ids = tuple(tokenizer.encode("<code>a</code> and more"))
    kept = tokens_of_turn(tokenizer, ids, ("</code>",))
    assert 2 < kept < len(ids)
    for first, runs in (
        (2, ((4, 2), (6, kept - 2))),  # the new weights' run is cut with the surplus tokens
        (kept, ()),  # the kept tokens have one version, which needs no runs
    ):
        episode = Episode(PROBLEM, Rules(), tokenizer)
        given = ((4, first), (6, len(ids) - first))
        generation = Generation(ids, (-0.5,) * len(ids), "tag", 0.0, 4, weight_runs=given)
        episode.act_ids(generation)
        span = episode.transcript.spans[-1]
        assert (span.weight_version, span.weight_runs) == (4, runs)
        check_transcript(episode.transcript)


def test_an_episode_from_prompt_to_reward():
    episode, _ = start(Rules(), False)
    need = episode.act("<code>print(6*7)</code>")
    assert need == RunProgram("print(6*7)", Limits())
    episode.executed(Execution(Outcome.OK, "42\n"))
    assert episode.act("<answer>42</answer>") == GradeAnswer("42", "42")
    episode.graded(True)
    transcript = episode.transcript
    assert (transcript.stop_reason, transcript.reward) == (StopReason.ANSWERED, 1.0)
    assert [span.author for span in transcript.spans] == ["prompt", "model", "env", "model"]
    with pytest.raises(RuntimeError, match="ended"):
        episode.act("more")


def test_the_last_allowed_call_still_runs_and_then_an_answer_may_come():
    for last, reason in (
        ("<answer>1</answer>", StopReason.ANSWERED),
        ("<code>b</code>", StopReason.CALL_LIMIT),
    ):
        episode, _ = start(Rules(max_calls=1), False)
        assert isinstance(episode.act("<code>a</code>"), RunProgram)
        episode.executed(Execution(Outcome.OK, "shown\n"))
        assert not episode.done and "shown" in episode.transcript.text
        if isinstance(episode.act(last), GradeAnswer):
            episode.graded(False)
        assert episode.transcript.stop_reason is reason and reason.terminated
        assert len(episode.transcript.calls) == 1


def test_void_turns_that_go_on_are_told_so_and_bounded():
    episode, _ = start(Rules(void_turn="continue", max_calls=2), False)
    for _ in range(2):
        assert episode.act("hmm") is None and not episode.done
    assert "Neither a complete code block nor an answer" in episode.transcript.text
    episode.act("hmm")
    assert episode.transcript.stop_reason is StopReason.CALL_LIMIT
    assert not episode.transcript.calls


def test_an_infrastructure_failure_is_unscored_and_unseen():
    episode, _ = start(Rules(), False)
    episode.act("<code>a</code>")
    before = episode.transcript.text
    episode.executed(Execution(Outcome.INFRASTRUCTURE, "", "the jail did not start"))
    transcript = episode.transcript
    assert (
        transcript.stop_reason is StopReason.INFRASTRUCTURE
        and not transcript.stop_reason.terminated
    )
    assert transcript.reward is None and transcript.text == before


def test_every_other_end_is_scored():
    for reason in StopReason:
        if reason.terminated or reason is StopReason.INFRASTRUCTURE:
            continue
        episode, _ = start(Rules(), False)
        episode.act("<code>1</code>")
        episode.cut(reason)
        assert episode.transcript.reward == -1.0 and episode.transcript.correct is False
    episode, _ = start(Rules(), False)
    with pytest.raises(ValueError, match="not a truncation"):
        episode.cut(StopReason.ANSWERED)


def test_what_was_cancelled_before_the_model_wrote_is_not_scored():
    episode, _ = start(Rules(), False)
    episode.cut(StopReason.CANCELLED)
    assert episode.transcript.reward is None and not episode.transcript.scored
    assert episode.transcript.correct is None
    with pytest.raises(ValueError, match=r"unscored episode .* has no reward"):
        check_transcript(dataclasses.replace(episode.transcript, reward=-1.0))


def test_the_token_budget_counts_the_interpreters_tokens_and_is_never_exceeded():
    episode, tokenizer = start(Rules(max_tokens=20), True)
    act(episode, tokenizer, "<code>a</code>")
    spent = len(episode.transcript.completion_ids)
    assert episode.token_budget == 20 - spent
    episode.executed(Execution(Outcome.OK, "x" * 100))
    transcript = episode.transcript
    assert transcript.stop_reason is StopReason.TOKEN_BUDGET
    assert len(transcript.completion_ids) <= 20 and len(transcript.calls) == 1
    check_transcript(transcript)


def test_a_turn_cut_by_length_is_truncated_and_not_void():
    for void_turn in ("end", "continue"):
        episode, tokenizer = start(Rules(max_tokens=3, void_turn=void_turn), True)
        ids = tuple(tokenizer.encode("a long thought"))
        episode.act_ids(Generation(ids, (-1.0,) * len(ids), "length"))
        transcript = episode.transcript
        assert transcript.stop_reason is StopReason.TOKEN_BUDGET
        assert len(transcript.completion_ids) == 3


def test_the_character_budget_cuts_text_and_executes_nothing_beyond_it():
    episode, _ = start(Rules(max_characters=10), False)
    assert episode.act("<code>print(1)</code>") is None
    transcript = episode.transcript
    assert transcript.stop_reason is StopReason.CHARACTER_BUDGET
    assert transcript.response_text == "<code>prin"


def test_the_time_budget():
    now = [0.0]
    episode = Episode(PROBLEM, Rules(max_seconds=5.0), clock=lambda: now[0])
    assert isinstance(episode.act("<code>a</code>"), RunProgram)
    now[0] = 6.0
    episode.executed(Execution(Outcome.OK, "1\n"))
    assert episode.transcript.stop_reason is StopReason.TIME_BUDGET


def test_long_output_is_cut_as_set_and_the_record_keeps_what_was_shown():
    episode, _ = start(Rules(output_characters=10, output_cut="head"), False)
    episode.act("<code>a</code>")
    episode.executed(Execution(Outcome.OK, "y" * 50 + "the result"))
    assert "the result" in episode.transcript.text and "y" not in episode.transcript.spans[-1].text
    assert len(episode.transcript.calls[0].execution.stdout) < 60


@pytest.mark.parametrize("by_ids", [False, True], ids=["text", "ids"])
@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("display", [False, True])
def test_the_need_of_a_program_says_how_it_runs(by_ids, session, display):
    limits = Limits(wall_seconds=1)
    rules = Rules(session=session, display=display, limits=limits)
    episode, tokenizer = start(rules, by_ids)
    need = act(episode, tokenizer, "<code>a</code>")
    assert need == RunProgram("a", limits, session=session, display=display)
    assert ("remembers nothing" in episode.transcript.text) is not session
    assert ("the value of a last line" in episode.transcript.text) is display


TRACE = 'Traceback (most recent call last):\n  File "<program>", line 1, in <module>\n    a\nE: no'


@pytest.mark.parametrize("by_ids", [False, True], ids=["text", "ids"])
def test_errors_are_shown_as_set_and_recorded_whole(by_ids):
    failed = Execution(Outcome.RUNTIME_ERROR, "", "E: no", TRACE)
    for rules, shown in (
        (Rules(), TRACE),
        (Rules(errors="last_line"), "E: no"),
        (Rules(output_characters=10), "[... 75 characters cut ...]\n    a\nE: no"),
    ):
        episode, tokenizer = start(rules, by_ids)
        act(episode, tokenizer, "<code>a</code>")
        episode.executed(failed)
        span = episode.transcript.spans[-1]
        assert span.text == f"\n<interpreter>\n{shown}\n</interpreter>\n\n"
        assert span.execution == failed
        assert tokenizer is None or tokenizer.decode(span.token_ids) == span.text


def test_a_printed_box_earns_nothing():
    episode, _ = start(Rules(), False)
    episode.act("<code>print(chr(60) + 'answer>42')</code>")
    episode.executed(Execution(Outcome.OK, "<answer>\\boxed{42}</answer>\n"))
    assert episode.transcript.answer is None and not episode.done
    episode.act("as it says")
    assert episode.transcript.reward == -1.0


def test_rewards_presets():
    for preset, expected in (("paper", -1.0), ("verl", -0.9), (lambda t: float(len(t.calls)), 1.0)):
        episode, _ = start(Rules(reward=preset), False)
        episode.act("<code>a</code>")
        episode.executed(Execution(Outcome.OK, "1\n"))
        episode.act("<answer>1</answer>")
        episode.graded(False)
        assert episode.transcript.reward == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"max_calls": -1},
        {"max_calls": "3"},
        {"max_tokens": "3"},
        {"limits": {"wall": 1}},
        {"limits": {"wall_seconds": 0}},
        {"limits": {"wall_seconds": "1"}},
        {"limits": {"memory_mb": 1.5}},
        {"limits": {1: 2, "wall": 3}},
        {"limits": "foo"},
        {"limits": '{"wall_seconds": 1}'},
        {"limits": None},
        {"limits": 5},
        {"limits": [1]},
        {"max_calls": True},
        {"max_calls": 1.5},
        {"max_tokens": float("inf")},
        {"max_characters": 1.5},
        {"max_characters": True},
        {"max_seconds": float("nan")},
        {"max_seconds": float("inf")},
        {"max_seconds": "5"},
        {"output_characters": None},
        {"output_characters": float("inf")},
        {"protocol": "xml"},
        {"protocol": None},
        {"protocol": ["tags"]},
        {"output_cut": "left"},
        {"void_turn": "stop"},
        {"errors": "short"},
        {"errors": ["traceback"]},
        {"session": "yes"},
        {"session": None},
        {"display": 1},
        {"interpreter": "no"},
        {"reward": "none"},
        {"max_seconds": -1},
        {"prompt_template": "no such file"},
    ],
)
def test_bad_rules_are_refused(settings):
    (name,) = settings
    said = "no such file" if name == "prompt_template" else name.removesuffix("s")
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?i)\b{said}"):
        Rules(**settings)


def test_limits_may_be_a_mapping_of_any_kind():
    expected = Rules(limits=Limits(wall_seconds=2, memory_mb=64))
    assert Rules(limits={"wall_seconds": 2, "memory_mb": 64}) == expected
    assert Rules(limits=MappingProxyType({"wall_seconds": 2, "memory_mb": 64})) == expected


def test_results_that_nobody_asked_for_are_refused():
    episode, _ = start(Rules(), False)
    with pytest.raises(RuntimeError):
        episode.executed(Execution(Outcome.OK, ""))
    with pytest.raises(RuntimeError):
        episode.graded(True)
    episode.act("<code>a</code>")
    with pytest.raises(RuntimeError, match=r"open need: call executed with its result"):
        episode.act("again")
    episode.executed(Execution(Outcome.OK, ""))
    episode.act("<answer>1</answer>")
    with pytest.raises(RuntimeError, match=r"open need: call graded with its result"):
        episode.act("again")


TURNS = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(["<code>", "</code>", "<answer>", "</answer>", "print(1)", "x>", "</"]),
    ),
    max_size=8,
).map("".join)


@given(
    turns=st.lists(TURNS, min_size=1, max_size=6),
    budget=st.integers(1, 120),
    void_turn=st.sampled_from(["end", "continue"]),
    interpreter=st.booleans(),
)
def test_any_turns_keep_the_invariants(turns, budget, void_turn, interpreter):
    rules = Rules(interpreter=interpreter, void_turn=void_turn, max_calls=3, max_tokens=budget)
    episode, tokenizer = start(rules, True)
    sampled = []
    for text in turns:
        if episode.done:
            break
        ids = tokenizer.encode(text)
        need = episode.act_ids(Generation(tuple(ids), (-0.1,) * len(ids), "tag"))
        sampled.append(ids)
        if isinstance(need, RunProgram):
            episode.executed(Execution(Outcome.OK, "out\n"))
        elif isinstance(need, GradeAnswer):
            episode.graded(False)
    transcript = episode.transcript
    check_transcript(transcript)
    mask, ids = transcript.loss_mask, transcript.completion_ids
    assert len(mask) == len(ids) == len(transcript.logprobs) <= budget
    kept = [i for i, own in zip(ids, mask, strict=True) if own]
    at = 0
    for span in transcript.spans:
        if span.author == "model":  # the record keeps a prefix of each sampled turn
            assert list(span.token_ids) == sampled[at][: len(span.token_ids)]
            at += 1
    assert len(kept) == sum(len(s.token_ids) for s in transcript.spans if s.author == "model")
    assert Transcript.from_json(transcript.to_json()) == transcript


def texts_after(rules, *turns):
    """The environment's texts of an episode in which every program prints 7."""
    episode = Episode(PROBLEM, rules)
    for turn in turns:
        if episode.act(turn) is not None:
            episode.executed(Execution(Outcome.OK, "7\n"))
    return [s.text for s in episode.transcript.spans if s.author == "env"], episode.transcript


CALL = '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "print(7)"}}\n</tool_call>'


def test_the_executions_that_remain_are_announced_outside_of_the_output():
    rules = Rules(max_calls=3, announce_calls=True)
    results, transcript = texts_after(rules, *["<code>print(7)</code>", "<code></code>"] * 2)
    assert results[0] == "\n<interpreter>\n7\n</interpreter>\n[2 executions remain.]\n\n"
    assert results[1].endswith("</interpreter>\n[1 execution remains.]\n\n")  # a failed call
    assert results[2].endswith("[0 executions remain.]\n\n")
    assert transcript.stop_reason is StopReason.CALL_LIMIT
    assert transcript.calls[0].execution.stdout == "7\n"
    hermes = Rules(protocol="hermes", max_calls=3, announce_calls=True)
    [result], _ = texts_after(hermes, CALL)
    assert result == "\n<tool_response>\n7\n\n[2 executions remain.]\n</tool_response>\n"


@pytest.mark.parametrize("protocol", ["tags", "hermes"])
def test_nothing_is_announced_without_the_setting_or_without_a_limit(protocol):
    call = CALL if protocol == "hermes" else "<code>print(7)</code>"
    plain, _ = texts_after(Rules(protocol=protocol), call)
    unlimited = Rules(protocol=protocol, max_calls=None, announce_calls=True)
    assert texts_after(unlimited, call)[0] == plain and "remain" not in plain[0]


def test_announced_ids_are_the_ids_of_the_text():
    tokenizer = PairTokenizer()
    episode = Episode(PROBLEM, Rules(announce_calls=True), tokenizer)
    ids = tuple(tokenizer.encode("<code>print(7)</code>"))
    episode.act_ids(Generation(ids, (0.0,) * len(ids), "tag"))
    episode.executed(Execution(Outcome.OK, "7\n"))
    span = episode.transcript.spans[-1]
    assert span.text.endswith("[7 executions remain.]\n\n")
    assert tokenizer.decode(span.token_ids) == span.text
    check_transcript(episode.transcript)


def test_invalid_turns_in_a_row_end_an_episode_that_passes_them_over():
    rules = Rules(void_turn="continue", max_void=2)
    texts, transcript = texts_after(rules, "Hm.", "<code>print(7)</code>", "Hm.", "Well.")
    assert transcript.stop_reason is StopReason.VOID_TURN and len(texts) == 3
    unread = "<tool_call>\nprint(7\n</tool_call>"
    hermes = Rules(protocol="hermes", void_turn="continue", max_void=2)
    assert texts_after(hermes, unread)[1].stop_reason is None
    assert texts_after(hermes, unread, unread)[1].stop_reason is StopReason.VOID_TURN
    assert texts_after(hermes, unread, CALL, unread)[1].stop_reason is None
    ends = Rules(protocol="hermes", max_void=1)  # void turns are not passed over
    assert texts_after(ends, unread, unread)[1].stop_reason is None
