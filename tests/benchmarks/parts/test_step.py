"""The simulation of a step, on cases worked out by hand."""

import numpy as np
import pytest

from benchmarks.parts.chains import Turn
from benchmarks.parts.step import Load, Step, draw_chains

PLAIN = Load(
    problems=2,
    rollouts=1,
    gpus=1,
    rows=2,
    in_flight=2,
    token_seconds=1.0,
    row_seconds=0.0,
    prefill_seconds=0.0,
)
"""One GPU that writes a token per second in each row."""


CHAINS = [(Turn(2, 3.0), Turn(1, None)), (Turn(4, None),)]


def test_without_a_barrier_an_episode_waits_for_its_own_program_alone() -> None:
    # The first writes until 2, runs a program until 5, writes until 6. The second writes until 4.
    course = Step(PLAIN, CHAINS, barrier=None).run()
    assert (course.seconds, course.ends, course.cut) == (6, (4, 6), 0)
    assert course.idle == pytest.approx(1 / 6)  # from 4 to 5
    assert course.rows == pytest.approx((2 * 2 + 1 * 2 + 1) / 6)
    assert course.tokens_per_second == pytest.approx(7 / 6)
    assert course.busy == ((0, 0), (0, 1), (4, 0), (5, 1))


def test_at_a_barrier_all_wait_for_the_longest_turn_and_the_longest_program() -> None:
    # Turns until 4, the program until 7, the next turn until 8.
    course = Step(PLAIN, CHAINS, barrier="all").run()
    assert (course.seconds, course.ends) == (8, (4, 8))
    assert course.idle == pytest.approx(3 / 8)
    three = [*CHAINS, (Turn(1, 5.0), Turn(2, None))]
    # All three at once on a GPU with rows for all: turns until 4, programs until 9, then 2 tokens.
    load = Load(**{**vars(PLAIN), "problems": 3, "rows": 3})
    assert Step(load, three, barrier="all").run().ends == (4, 10, 11)


def test_a_barrier_on_each_gpu_holds_up_only_its_own_episodes() -> None:
    # First GPU: 2 tokens, 3 seconds, 1 token. Second GPU: the turn until 4, the program until 5.
    chains = [(Turn(2, 3.0), Turn(1, None)), (Turn(4, 1.0), Turn(1, None))]
    load = Load(**{**vars(PLAIN), "gpus": 2})
    assert Step(load, chains, barrier="all").run().ends == (8, 8)
    assert Step(load, chains, barrier="gpu").run().ends == (6, 6)
    # Two episodes on one GPU still wait for each other, and for nobody else.
    chains = [CHAINS[0], CHAINS[1], (Turn(20, None),), (Turn(20, None),)]
    load = Load(**{**vars(PLAIN), "gpus": 2, "rollouts": 2})
    assert Step(load, chains, barrier="gpu").run().ends == (4, 8, 20, 20)
    assert Step(load, chains, barrier="all").run().ends == (4, 20, 20, 24)


def test_a_deadline_cuts_what_runs_then() -> None:
    course = Step(PLAIN, CHAINS, barrier=None, deadline=5.0).run()
    assert (course.seconds, course.ends, course.cut) == (5, (4,), 1)
    assert course.idle == pytest.approx(1 / 5)
    assert course.tokens_per_second == pytest.approx(4 / 5)
    late = Step(PLAIN, CHAINS, barrier=None, deadline=100.0).run()
    assert (late.seconds, late.cut) == (6, 0)


def test_episodes_beyond_those_in_flight_begin_when_others_end() -> None:
    load = Load(**{**vars(PLAIN), "problems": 3, "in_flight": 1})
    course = Step(load, [*CHAINS, (Turn(5, None),)], barrier=None).run()
    assert course.ends == (6, 10, 15)


def test_programs_wait_for_workers() -> None:
    chains = [(Turn(1, 3.0), Turn(1, None))] * 3
    load = Load(**{**vars(PLAIN), "problems": 3, "rows": 3, "in_flight": 3})
    free = Step(load, chains, barrier=None).run()
    assert (free.ends, free.programs, free.programs_per_second) == ((5, 5, 5), 3, 3)
    one = Step(Load(**{**vars(load), "workers": 1}), chains, barrier=None).run()
    assert (one.ends, one.programs, one.programs_per_second) == ((5, 8, 11), 3, 1)


def test_a_problem_stays_on_its_gpu() -> None:
    load = Load(**{**vars(PLAIN), "rollouts": 2, "gpus": 2})
    chains = [(Turn(3, None),), (Turn(2, None),), (Turn(7, None),), (Turn(1, None),)]
    course = Step(load, chains, barrier=None).run()
    assert course.ends == (1, 2, 3, 7)
    assert course.busy == ((0, 0), (0, 2), (3, 1)) and course.idle == pytest.approx(4 / 14)


def test_prompts_and_results_are_read() -> None:
    load = Load(**{**vars(PLAIN), "prefill_seconds": 0.01, "prompt_tokens": 50, "problems": 1})
    assert Step(load, CHAINS[:1], barrier=None).run().seconds == pytest.approx(6 + 0.5 + 1)


def test_chains_are_as_assumed() -> None:
    load = Load(problems=2000, rollouts=1, calls=2, max_calls=10**6, max_tokens=10**9)
    chains = draw_chains(load, sandbox_seconds=0.0)
    assert np.mean([len(chain) - 1 for chain in chains]) == pytest.approx(2, rel=0.1)
    turns = [turn for chain in chains for turn in chain]
    assert np.mean([turn.tokens for turn in turns]) == pytest.approx(2000, rel=0.05)
    tools = [turn.tool_seconds for turn in turns if turn.tool_seconds is not None]
    assert np.median(tools) == pytest.approx(0.05, rel=0.1)
    assert np.mean(np.array(tools) > 3) == pytest.approx(0.01, abs=0.006) and max(tools) <= 5
    dearer = draw_chains(load, sandbox_seconds=1.0)
    assert dearer[0][0].tokens == chains[0][0].tokens
    assert min(t.tool_seconds for c in dearer for t in c[:-1]) > 1


def test_chains_keep_to_their_budgets() -> None:
    load = Load(problems=300, rollouts=1, max_calls=2, max_tokens=5000, result_tokens=300)
    for chain in draw_chains(load, 0.0):
        assert [turn.tool_seconds is None for turn in chain] == [False] * (len(chain) - 1) + [True]
        assert len(chain) <= 3
        assert sum(turn.tokens for turn in chain) + 300 * (len(chain) - 1) <= 5000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpus": 0}, "gpus"),
        ({"token_seconds": 0.0}, None),
        ({"deadline_share": 0.0}, "deadline_share"),
        ({"tool_median": 4.0}, "median"),
        ({"workers": -1}, "workers"),
        ({"spread": -1.0}, "spread"),
    ],
)
def test_senseless_loads_are_refused(changes: dict, says: str | None) -> None:
    with pytest.raises(ValueError, match=says):
        Load(**changes)
