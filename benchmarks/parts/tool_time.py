"""How long rollouts wait for their tools: TRL's own loop, the same trainer with our `rollout_func`, and our engine alone.

Each rollout calls the tool once. Their turns are written beforehand, so that no time is lost there.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.parts.overhead import RULES, InstantPolicy, WaitingTool, run
from benchmarks.parts.trl_loop import engine_tool_loop, trl_tool_loop
from retool_env.rollout import RolloutEngine


def tool_time(rollouts: int, seconds: float) -> dict[str, dict[str, float]]:
    """Seconds of rollouts that call a tool once, with the tool as stated and with one that takes no time."""

    def engine_in_trainer(each: float) -> float:
        tool: Any = WaitingTool(each)
        engine = RolloutEngine(InstantPolicy(1, False), RULES, tool, rollouts)
        return engine_tool_loop(rollouts, engine)

    ways: dict[str, Callable[[float], float]] = {
        "TRL's loop, a plain tool": lambda each: trl_tool_loop(rollouts, each, False),
        "TRL's loop, a coroutine": lambda each: trl_tool_loop(rollouts, each, True),
        "TRL's trainer, our rollout_func": engine_in_trainer,
        "our engine alone": lambda each: run(rollouts, InstantPolicy(1, False), WaitingTool(each))[
            0
        ],
    }
    found = {}
    for name, way in ways.items():
        whole, without = way(seconds), way(0.0)
        found[name] = {
            "wall_s": round(whole, 3),
            "without_tool_s": round(without, 3),
            "tool_s": round(whole - without, 3),
        }
    return found
