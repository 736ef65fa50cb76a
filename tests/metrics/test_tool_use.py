"""Figures of the interpreter's use, worked out by hand."""

import dataclasses

import pytest
from helpers.episodes import (
    ALL,
    ANSWERED,
    CODE,
    NAME,
    NOTICE,
    OK,
    RAN,
    RIGHT,
    episode,
    figures_of,
    means,
    sample,
    with_ids,
)

from retool_env.metrics.intervals import pooled
from retool_env.transcript import StopReason


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
