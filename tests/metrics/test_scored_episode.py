"""A scored episode: whether the model attempted a call, in which form, and whether it ran."""

import pytest
from helpers.episodes import (
    ANSWERED,
    CODE,
    DIRECT,
    EMPTY,
    LATE,
    LIMIT,
    MENDED,
    NAME,
    NOTICE,
    OK,
    PAUSED,
    RAN,
    RIGHT,
    STUBBORN,
    episode,
)

from retool_env.metrics.scored_episode import ScoredEpisode
from retool_env.transcript import StopReason

FENCE = episode("p", StopReason.VOID_TURN, "```python\nprint(1)\n```")
BEYOND = episode("q", StopReason.CALL_LIMIT, CODE)
"""Its only call is beyond the limit of calls and is not run."""


@pytest.mark.parametrize(
    ("transcript", "attempted", "well_formed", "ran"),
    [
        (DIRECT, False, False, False),
        (RAN, True, True, True),
        (STUBBORN, True, True, False),
        (EMPTY, True, False, False),
        (FENCE, True, False, False),
        (BEYOND, True, True, False),
        (LIMIT, True, True, False),
    ],
    ids=["no call", "ran", "failed", "empty program", "fence", "beyond the limit", "timeout"],
)
def test_a_call_is_attempted_then_well_formed_then_run(transcript, attempted, well_formed, ran):
    scored = ScoredEpisode(transcript)
    assert (scored.attempted, scored.well_formed, scored.ran) == (attempted, well_formed, ran)


def test_the_ways_of_all_turns_to_miss_the_form_are_named():
    half = episode("r", StopReason.CHARACTER_BUDGET, ("```python\n1\n```", NOTICE), "<code>1")
    assert ScoredEpisode(half).misses == {"fence", "half_tag"}
    assert ScoredEpisode(MENDED).misses == set()


def test_each_call_has_a_result_and_notices_are_not_results():
    scored = ScoredEpisode(PAUSED)
    assert [span.execution for span in scored.results] == [NAME, OK]
    assert [call.execution for call in scored.calls] == [NAME, OK]
    assert [turn.kind for turn in scored.turns] == ["code", "void", "code", "answer"]


def test_an_episode_is_right_by_its_verdict():
    wrong = episode("p", ANSWERED, (CODE, LATE), RIGHT, correct=False)
    assert ScoredEpisode(RAN).right and not ScoredEpisode(wrong).right
    assert ScoredEpisode(wrong).problem == "p"
