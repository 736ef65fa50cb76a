"""Evaluation: run a policy on problems, k times each, and show what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retool_env.execution import Sandbox
from retool_env.metrics.summary import Summary, summarise
from retool_env.problem import Problem
from retool_env.rollout.engine import Group, RolloutEngine
from retool_env.rollout.policy import Policy, TextPolicy
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.transcript import Transcript


def evaluate(
    policy: Policy | TextPolicy,
    rules: Rules,
    problems: Sequence[Problem],
    k: int,
    sandbox: Sandbox | None,
    seed: int = 0,
    on_group: Callable[[int, Group], None] | None = None,
    concurrency: int = 256,
    progress: Progress | None = None,
) -> tuple[Summary, list[Transcript]]:
    """avg@k of a policy.

    Args:
        policy: The model, with the sampling that is to be evaluated.
        rules: The episodes' settings.
        problems: Each is tried `k` times.
        k: Episodes a problem.
        sandbox: Where programs run; `None` only where the interpreter is off.
        seed: Of all sampling.
        on_group: Called with each problem's transcripts as they complete.
        concurrency: Episodes in flight at once.
        progress: Where counts are kept meanwhile.

    Returns:
        The figures, and the transcripts in the problems' order.

    Raises:
        ValueError: If there is no problem, or `k` is below 1.
    """
    if not problems or k < 1:
        raise ValueError("an evaluation needs at least one problem, and k of at least 1")
    engine = RolloutEngine(policy, rules, sandbox, concurrency, progress=progress)
    groups = engine.run(problems, k, seed, on_group)
    transcripts = [transcript for group in groups for transcript in group]
    return summarise(transcripts), transcripts
