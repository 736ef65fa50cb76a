"""Figures of transcripts that were worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
from helpers.episodes import (
    ALL,
    ANSWERED,
    BROKEN,
    CODE,
    DIRECT,
    LATE,
    MENDED,
    NAME,
    NOTICE,
    OK,
    RAN,
    RIGHT,
    TYPE,
    WRONG,
    episode,
    with_ids,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.execution import Execution, Outcome
from retool_env.metrics.failed_calls import FATES, error_kind
from retool_env.metrics.figures import Figure, measure
from retool_env.metrics.intervals import pooled, wilson
from retool_env.metrics.summary import summarise
from retool_env.metrics.tables import figures_table
from retool_env.protocol.result import EMPTY_PROGRAM
from retool_env.transcript import Call, StopReason


def figures_of(transcripts, **settings) -> dict[str, Figure]:
    found = measure(transcripts, **settings)
    assert len({figure.key for figure in found}) == len(found)
    return {figure.key: figure for figure in found}


def means(figures, *keys) -> list[float]:
    return [figures[key].mean for key in keys]


def sample(problem, answer, *turns, correct=False, **metadata):
    """An answered episode; an answer of `None` is cut by the budget."""
    reason = StopReason.TOKEN_BUDGET if answer is None else ANSWERED
    last = "hm" if answer is None else f"<answer>{answer}</answer>"
    made = episode(problem, reason, *turns, last, correct=correct)
    problem = dataclasses.replace(made.problem, metadata=metadata)
    return dataclasses.replace(made, answer=answer, problem=problem)


# --- the twelve episodes of the summary ---------------------------------------------------------


def test_accuracy_of_twelve_episodes():
    found = figures_of(ALL)
    # a 1/2, b 1, c 1/2, d 0, e 0, f 0, g 1, h 0; eight problems are always near the edge.
    average, expected = found["accuracy/avg"], wilson(3 / 8, 8)
    assert (average.count, average.problems, average.mean) == (11, 8, 3 / 8)
    assert average.mean == summarise(ALL).accuracy.mean
    assert (average.low, average.high) == pytest.approx((expected.low, expected.high))
    assert means(found, "accuracy/pass@1", "accuracy/pass^1") == [3 / 8, 3 / 8]
    # Two episodes each of a, b and c alone: one right of two, both, and one.
    assert means(found, "accuracy/pass@2", "accuracy/pass^2") == [1, pytest.approx(1 / 3)]
    assert (found["accuracy/pass@2"].count, found["accuracy/pass@2"].problems) == (6, 3)
    assert "accuracy/pass@4" not in found
    groups = ("none", "without_error", "error_mended", "error_not_mended")
    # DIRECT of it, GUESS and CUT; RAN; MENDED and PAUSED, not TWICE; STUBBORN of four.
    keys = [f"accuracy/calls/{group}" for group in groups]
    assert means(found, *keys) == pytest.approx([1 / 3, 1, 2 / 3, 1 / 4])
    assert [found[key].count for key in keys] == [3, 1, 3, 4]


def test_use_of_twelve_episodes():
    found = figures_of([with_ids(t) for t in ALL])
    # Not DIRECT, GUESS and CUT; nor EMPTY; RAN, MENDED, TWICE and PAUSED; of these not TWICE.
    stages = [f"use/{stage}" for stage in ("attempted", "well_formed", "ran", "right")]
    assert means(found, *stages) == pytest.approx([8 / 11, 7 / 11, 4 / 11, 3 / 11])
    attempted = found["use/attempted"]
    interval = pooled(
        [("a", 0, 2), ("b", 2, 2), ("c", 2, 2), *((p, 1, 1) for p in "defg"), ("h", 0, 1)]
    ).interval
    assert (attempted.low, attempted.high) == pytest.approx((interval.low, interval.high))
    assert found["use/calls"].mean == pytest.approx(13 / 11)
    histogram = [found[f"use/calls/{n}"].mean for n in range(10)] + [found["use/calls/10+"].mean]
    assert histogram == pytest.approx([3 / 11, 4 / 11, 3 / 11, 1 / 11] + [0] * 7)
    assert found["use/silent"].count == 4 and found["use/silent"].mean == 0
    # RAN's begins after four characters and NEVER's after two, of eight; each has two tokens.
    first = [f"use/first_call/{unit}" for unit in ("turns", "characters", "tokens")]
    assert means(found, *first) == [0, 6 / 8, 12 / 8]
    assert [found[key].count for key in first] == [8, 8, 8]
    assert figures_of(ALL)["use/first_call/tokens"].mean is None  # without token ids


def test_errors_of_twelve_episodes():
    found = figures_of(ALL)
    assert found["error/calls"].mean == pytest.approx(9 / 13)
    flow = {  # same_error, other_error, ok, gave_up, cut
        # TWICE's first; NEVER's first; MENDED, TWICE's second and PAUSED; STUBBORN, NEVER's
        # second and EMPTY; LIMIT
        "all": (1, 1, 3, 3, 1),
        "runtime_error/nameerror": (1, 1, 3, 1, 0),
        "runtime_error/typeerror": (0, 0, 0, 1, 0),
        "syntax_error/syntaxerror": (0, 0, 0, 1, 0),
        "timeout": (0, 0, 0, 0, 1),
    }
    for kind, numbers in flow.items():
        row = [found[f"error/{kind}/next/{fate}"] for fate in FATES]
        assert [round(figure.mean * figure.count, 9) for figure in row] == list(numbers), kind
        assert {figure.count for figure in row} == {sum(numbers)}
        if kind != "all":
            assert found[f"error/{kind}"].mean == pytest.approx(sum(numbers) / 9)
    assert sum(key.endswith("/next/ok") for key in found) == len(flow)


def test_recovery_of_twelve_episodes():
    found = figures_of(ALL)
    # All nine failed calls are followed by a turn; five of them by a call, of which TWICE's first
    # needs two calls.
    assert means(found, *(f"recovery/ran@{k}/had_turn" for k in (1, 2, 3))) == pytest.approx(
        [3 / 9, 4 / 9, 4 / 9]
    )
    assert means(found, *(f"recovery/ran@{k}/called" for k in (1, 2, 3))) == pytest.approx(
        [3 / 5, 4 / 5, 4 / 5]
    )
    mended, expected = found["recovery/mended"], summarise(ALL).recovery.mended
    assert (mended.mean, mended.low, mended.high) == dataclasses.astuple(expected.interval)
    assert (mended.count, mended.problems) == (7, 6)


def test_warnings_of_twelve_episodes():
    found = figures_of(ALL)
    assert found["warning/cut_before_answer"].mean == pytest.approx(1 / 11)  # CUT
    assert found["warning/right_not_in_form"].mean == 0


# --- pass@k, votes and groups -------------------------------------------------------------------


def test_figures_of_several_samples_by_hand():
    rollouts = [
        # Two right of four. Votes: 42, and 42.0 with it; 7; none.
        sample("p", "42", correct=True),
        sample("p", "7"),
        sample("p", "42.0", correct=True),
        sample("p", None),
        # One right of four, and two votes for another answer.
        sample("q", "8"),
        sample("q", "8"),
        sample("q", "42", correct=True),
        sample("q", " "),
    ]
    found = figures_of(rollouts)
    assert [key for key in found if "/maj@" in key] == [f"accuracy/maj@{k}" for k in (1, 2, 4)]
    assert found["accuracy/avg"].mean == found["accuracy/maj@1"].mean == 3 / 8
    # pass@2: 1 - C(2, 2) / 6 and 1 - C(3, 2) / 6. pass^2: C(2, 2) / 6 and 0.
    assert found["accuracy/pass@2"].mean == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert found["accuracy/pass^2"].mean == pytest.approx((1 / 6 + 0) / 2)
    # Of p's six pairs, right, right; two ties with 7; twice 42 and none; 7 and none is wrong.
    # Of q's, 42 and none; two ties with 8.
    assert found["accuracy/maj@2"].mean == pytest.approx(((1 + 2 * 0.5 + 2) / 6 + (1 + 1) / 6) / 2)
    assert found["accuracy/maj@4"].mean == 1 / 2
    assert means(found, "accuracy/pass@4", "accuracy/pass^4") == [1, 0]
    never = figures_of(rollouts, equal=lambda a, b: False)  # equal texts need no question
    assert never["accuracy/maj@4"].mean == pytest.approx((1 / 3 * 2 + 0) / 2)


def test_the_sizes_may_be_chosen():
    rollouts = [sample("p", "42", correct=True)] * 3 + [sample("q", "7")] * 2
    assert [key for key in figures_of(rollouts) if "pass@" in key] == [
        f"accuracy/pass@{k}" for k in (1, 2, 3)
    ]
    found = figures_of(rollouts, ks=(3,))
    assert [key for key in found if "pass@" in key] == ["accuracy/pass@3"]
    # A problem with fewer samples is left out.
    assert (found["accuracy/pass@3"].mean, found["accuracy/pass@3"].problems) == (1, 1)
    assert found["accuracy/pass@3"].low is None
    with pytest.raises(SettingsError, match="k = 4 and n = 3"):
        measure(rollouts, ks=(4,))


def test_accuracy_by_data_set_difficulty_and_subject():
    rollouts = [
        sample("math/test/0", "42", correct=True, level=5, subject="Number Theory"),
        sample("math/test/0", "7", level=5, subject="Number Theory"),
        sample("math/test/1", "7", level=10, subject="Counting & Probability"),
        sample("math/test/2", "7", level="10"),
        sample("mine", "42", correct=True, difficulty=2, data_set="Own"),
        sample("plain", "42", correct=True),
    ]
    found = figures_of(rollouts)
    groups = {key: f.mean for key, f in found.items() if key.count("/") >= 2}
    groups = {key: mean for key, mean in groups.items() if key.startswith("accuracy/")}
    groups = {key: mean for key, mean in groups.items() if "/calls/" not in key}
    assert list(groups.items()) == [
        ("accuracy/data_set/math/test", pytest.approx(1 / 6)),
        ("accuracy/data_set/own", 1),
        ("accuracy/difficulty/2", 1),
        ("accuracy/level/5", 1 / 2),
        ("accuracy/level/10", 0),
        ("accuracy/subject/counting_probability", 0),
        ("accuracy/subject/number_theory", 1 / 2),
    ]
    numbers = [
        (found[f"accuracy/level/{n}"].count, found[f"accuracy/level/{n}"].problems) for n in (5, 10)
    ]
    assert numbers == [(2, 1), (2, 2)]


# --- use of the interpreter ---------------------------------------------------------------------


def test_calls_that_print_nothing_and_calls_that_catch_their_errors():
    silent = dataclasses.replace(OK, stdout=" \n")
    caught = dataclasses.replace(OK, stdout="ZeroDivisionError: division by zero\n")
    handled = "<code>try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    print(repr(e))</code>"
    rollouts = [
        sample("p", "7", (CODE, silent), (handled, caught)),
        sample("p", "7", (handled, OK)),  # nothing went wrong
        sample("q", "7", (CODE, caught)),  # nothing to catch with
        sample("r", "7", (CODE, NAME)),  # did not run
    ]
    found = figures_of(rollouts)
    assert (found["use/silent"].count, found["use/silent"].mean) == (4, 1 / 4)
    assert (found["use/self_caught"].count, found["use/self_caught"].mean) == (4, 1 / 4)


def test_the_seconds_of_tools_and_the_way_to_the_first_call():
    def timed(transcript, seconds):
        spans = [dataclasses.replace(span, seconds=seconds) for span in transcript.spans]
        return dataclasses.replace(transcript, spans=tuple(spans))

    late = sample("p", "7", ("hm", NOTICE), ("12" + CODE, OK), (CODE, OK))
    found = figures_of([timed(late, 0.5), timed(sample("q", "7", (CODE, OK)), 0.25)])
    assert found["use/tool_seconds"].mean == pytest.approx((1.0 + 0.25) / 2)
    # "hm", its notice and "12" are seven characters; with ids, 2 * 2 + 3 + 2 * 2 tokens.
    assert means(found, "use/first_call/turns", "use/first_call/characters") == [1 / 2, 7 / 2]
    assert figures_of([with_ids(late)])["use/first_call/tokens"].mean == 11


def test_an_attempt_that_misses_the_form_is_an_attempt():
    fence = episode("p", StopReason.VOID_TURN, "```python\nprint(1)\n```")
    foreign = episode("q", StopReason.VOID_TURN, "<tool_call>{}</tool_call>")
    half = episode("r", StopReason.CHARACTER_BUDGET, "<code>print(1)")
    none = episode("s", ANSWERED, RIGHT, correct=True)
    found = figures_of([fence, foreign, half, none])
    stages = [f"use/{stage}" for stage in ("attempted", "well_formed", "ran", "right")]
    assert means(found, *stages) == [3 / 4, 0, 0, 0]
    misses = ("fence", "foreign_call", "half_tag", "written_output")
    assert means(found, *(f"use/missed/{miss}" for miss in misses)) == [1 / 4, 1 / 4, 1 / 4, 0]


def test_without_an_interpreter_there_is_no_use():
    text = episode("p", ANSWERED, "```python\n1\n```" + RIGHT, correct=True, interpreter=False)
    found = figures_of([text, RAN])
    assert found["accuracy/avg"].count == 2
    assert found["use/attempted"].count == found["accuracy/calls/without_error"].count == 1


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "error", "kind"),
    [
        (Outcome.RUNTIME_ERROR, "ValueError: bad", "runtime_error/valueerror"),
        (Outcome.RUNTIME_ERROR, "AssertionError", "runtime_error/assertionerror"),
        (
            *(Outcome.RUNTIME_ERROR, "json.decoder.JSONDecodeError: no"),
            "runtime_error/json.decoder.jsondecodeerror",
        ),
        (Outcome.RUNTIME_ERROR, "exit status 3", "runtime_error"),
        (Outcome.TIMEOUT, "time limit: more than 5 s", "timeout"),
        (Outcome.MEMORY_LIMIT, "", "memory_limit"),
    ],
)
def test_the_kind_of_an_error(outcome, error, kind):
    assert error_kind(Call("x", Execution(outcome, "", error), 0, "plain")) == kind


@pytest.mark.parametrize("reason", [r for r in StopReason if r is not StopReason.INFRASTRUCTURE])
def test_an_end_after_a_failed_call_is_the_models_choice_or_a_cut(reason):
    found = figures_of([episode("p", reason, (CODE, NAME), "and so on")])
    given_up = reason in (StopReason.ANSWERED, StopReason.STOPPED, StopReason.VOID_TURN)
    assert found["error/all/next/gave_up"].mean == given_up
    assert found["error/all/next/cut"].mean == (not given_up)


def test_recovery_has_two_denominators():
    rollouts = [
        episode("p", ANSWERED, (CODE, NAME), (CODE, TYPE), (CODE, LATE), (CODE, OK), RIGHT),
        episode("q", ANSWERED, (CODE, NAME), WRONG),  # another turn, and no call
        episode("r", StopReason.CHARACTER_BUDGET, (CODE, NAME)),  # no other turn
        episode("s", ANSWERED, (CODE, NAME), ("hm", NOTICE), WRONG),
    ]
    found = figures_of(rollouts)
    assert found["error/calls"].count == 7
    for k, ran in ((1, 1), (2, 2), (3, 3)):
        had_turn, called = found[f"recovery/ran@{k}/had_turn"], found[f"recovery/ran@{k}/called"]
        assert (had_turn.count, had_turn.mean) == (5, pytest.approx(ran / 5))
        assert (called.count, called.mean) == (3, pytest.approx(ran / 3))


# --- cost ---------------------------------------------------------------------------------------


def test_cost_by_hand():
    def used(prompt, completion, cost=None):
        return SimpleNamespace(prompt_tokens=prompt, completion_tokens=completion, cost=cost)

    rollouts = [
        sample("p", "42", correct=True),
        sample("p", "7"),
        sample("q", "42", correct=True),
        BROKEN,
        sample("r", "7"),
    ]
    usage = [used(100, 10, 0.5), used(200, 20, 1.5), used(60, 10), used(9000, 0, 9.0), None]
    found = figures_of(rollouts, usage=usage)
    assert means(found, "cost/prompt_tokens", "cost/completion_tokens") == [
        pytest.approx(360 / 3),
        pytest.approx(40 / 3),
    ]
    tokens = found["cost/tokens_per_right"]
    assert (tokens.count, tokens.problems, tokens.mean) == (3, 2, pytest.approx(400 / 2))
    # Residuals: p 330 - 200, q 70 - 200; t of one degree of freedom.
    half = 12.7062047 * math.sqrt(2 * (130**2 + 130**2)) / 2
    assert tokens.high == pytest.approx(200 + half)
    assert means(found, "cost/dollars", "cost/dollars_per_right") == [1.0, 2.0]
    assert found["cost/dollars"].low is None  # one problem
    without = [SimpleNamespace(prompt_tokens=1, completion_tokens=1)] * 5  # a cost is not asked
    assert figures_of(rollouts, usage=without)["cost/dollars"].count == 0
    wrong = figures_of(rollouts[1:2], usage=usage[1:2])
    assert wrong["cost/tokens_per_right"].mean is None  # no right answer
    assert not any(key.startswith("cost/") for key in figures_of(rollouts))
    with pytest.raises(SettingsError, match="4 entries and 5 transcripts"):
        measure(rollouts, usage=usage[1:])


# --- what holds of any figures ------------------------------------------------------------------


def test_an_unfinished_episode_is_refused():
    with pytest.raises(SettingsError, match="finished"):
        measure([DIRECT, dataclasses.replace(DIRECT, stop_reason=None)])


def test_without_a_case_there_is_no_figure():
    for transcripts in ([], [BROKEN]):
        found = figures_of(transcripts, usage=[None] * len(transcripts))
        assert "accuracy/avg" in found and "use/attempted" in found and "cost/dollars" in found
        for figure in found.values():
            assert (figure.count, figure.problems, figure.mean) == (0, 0, None), figure.key
            assert figure.low is figure.high is None and figure.marked


def test_figures_are_written_and_read_back():
    for figure in measure(ALL):
        record = json.loads(json.dumps(figure.to_json(), allow_nan=False))
        assert Figure.from_json(record) == Figure.from_json({**record, "later": 1}) == figure


def test_a_figure_on_fewer_than_50_cases_has_a_mark_and_is_shown():
    few = Figure("use/ran", 49, 7, 0.123456, 0.05, 0.25, "A share.")
    many = dataclasses.replace(few, key="use/calls", count=50, mean=12.0, low=None, high=None)
    none = dataclasses.replace(few, key="use/silent", count=0, mean=None, low=None, high=None)
    assert few.marked and none.marked and not many.marked
    lines = figures_table([few, many, none]).splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[:5]]
    assert rows[0] == ["figure", "mean [95 % interval]", "n"] and set("".join(rows[1])) == {"-"}
    assert rows[2:] == [
        ["use/ran", "0.1235 [0.05, 0.25]", "49 †"],
        ["use/calls", "12 [–, –]", "50"],
        ["use/silent", "–", "0 †"],
    ]
    assert lines[5:] == ["", "† fewer than 50 cases"]
    assert "†" not in figures_table([many])


TURNS = st.one_of(
    st.sampled_from([OK, NAME, TYPE, LATE, NOTICE]).map(lambda result: (f"so {CODE}", result)),
    st.just(("<code>\n</code>", EMPTY_PROGRAM)),
)
EPISODES = st.lists(
    st.builds(
        lambda problem, reason, turns, answer: dataclasses.replace(
            episode(problem, reason, *turns, RIGHT, correct=answer == "42"), answer=answer
        ),
        st.sampled_from("abcd"),
        st.sampled_from([ANSWERED, StopReason.CALL_LIMIT, StopReason.INFRASTRUCTURE]),
        st.lists(TURNS, max_size=4),
        st.sampled_from(["42", "7", None]),
    ),
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(episodes=EPISODES)
def test_what_holds_of_any_figures(episodes):
    found = figures_of(episodes)
    assert [f.key for f in measure(episodes[::-1])] == list(found)
    for figure in found.values():
        assert figure.problems <= figure.count
        assert (figure.mean is None) == (figure.count == 0)
        assert (figure.low is None) == (figure.high is None)
        assert figure.key == figure.key.lower() and figure.definition.endswith(".")
        if figure.low is not None:
            assert figure.low <= figure.mean <= figure.high
    summary = summarise(episodes)
    if summary.accuracy:
        average = found["accuracy/avg"].mean
        assert average == pytest.approx(summary.accuracy.mean)
        assert found["use/calls"].mean == pytest.approx(summary.calls_per_episode)
        ones = ("accuracy/pass@1", "accuracy/pass^1", "accuracy/maj@1")
        assert means(found, *ones) == pytest.approx([average] * 3)
        stages = [f"use/{stage}" for stage in ("attempted", "well_formed", "ran", "right")]
        assert means(found, *stages) == sorted(means(found, *stages), reverse=True)
        histogram = [f.mean for key, f in found.items() if key.startswith("use/calls/")]
        assert sum(histogram) == pytest.approx(1)
    for key in found:
        if key.endswith("/next/ok") and found[key].count:
            row = key.removesuffix("ok")
            assert sum(found[row + fate].mean for fate in FATES) == pytest.approx(1)
    failed = found["error/calls"].count - summary.calls_ok
    assert found["error/all/next/ok"].count == failed
    if failed:
        kinds = [f.mean for key, f in found.items() if key.startswith("error/")]
        rows = [k for k in found if k.startswith("error/") and "/next/" not in k]
        assert kinds and sum(found[k].mean for k in rows if k != "error/calls") == pytest.approx(1)
        if summary.recovery.next_call_ok.count:
            assert found["error/all/next/ok"].mean == pytest.approx(
                summary.recovery.next_call_ok.interval.mean
            )
            assert found["error/all/next/same_error"].mean == pytest.approx(
                summary.recovery.same_error.interval.mean
            )


def test_a_mended_episode_is_measured_the_same_with_and_without_token_ids():
    text, ids = figures_of([MENDED]), figures_of([with_ids(MENDED)])
    differing = [key for key in text if text[key] != ids[key]]
    assert differing == ["use/first_call/tokens"]
