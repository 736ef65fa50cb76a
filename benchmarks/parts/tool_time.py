"""Measures how long rollouts wait for their tools, in three kinds of loop.

The loops are TRL's tool loop, the same trainer with our `rollout_func`, and our engine alone. Each
rollout calls the tool once. The turns are fixed beforehand, so generation takes no time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.parts.overhead import RULES, InstantPolicy, WaitingTool, run
from benchmarks.parts.trl_loop import engine_tool_loop, trl_tool_loop
from retool_env.rollout import RolloutEngine


def tool_time(rollouts: int, seconds: float) -> dict[str, dict[str, float]]:
    """Time rollouts that call a tool once, with a slow tool and with an instant tool.

    Args:
        rollouts: The number of rollouts.
        seconds: The time that the slow tool takes.

    Returns:
        By loop: `wall_s` with the slow tool, `without_tool_s` with the instant tool, and `tool_s`,
        the difference.
    """
    policy = partial(InstantPolicy, 1, False)

    def engine_in_trainer(wait: float) -> float:
        tool: Any = WaitingTool(wait)
        return engine_tool_loop(rollouts, RolloutEngine(policy(), RULES, tool, rollouts))

    loops: dict[str, Callable[[float], float]] = {
        "TRL's loop, a plain tool": lambda wait: trl_tool_loop(rollouts, wait, False),
        "TRL's loop, a coroutine": lambda wait: trl_tool_loop(rollouts, wait, True),
        "TRL's trainer, our rollout_func": engine_in_trainer,
        "our engine alone": lambda wait: run(rollouts, policy(), WaitingTool(wait))[0],
    }
    times = {}
    for name, loop in loops.items():
        whole, without = loop(seconds), loop(0.0)
        times[name] = {
            "wall_s": round(whole, 3),
            "without_tool_s": round(without, 3),
            "tool_s": round(whole - without, 3),
        }
    return times
