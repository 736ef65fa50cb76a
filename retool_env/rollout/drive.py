"""Driving one episode: asks the policy for turns, runs their programs, and grades the answer."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from retool_env.episode import Episode, GradeAnswer
from retool_env.errors import NotFinite
from retool_env.execution import Outcome
from retool_env.grading import is_equivalent_async
from retool_env.interpreter import Interpreter
from retool_env.need import Need
from retool_env.rollout.policy import PolicyUnavailable, TextPolicy
from retool_env.rollout.progress import Progress
from retool_env.transcript import StopReason

_log = logging.getLogger(__name__)


async def drive(
    episode: Episode,
    policy: Any,
    interpreter: Interpreter,
    seed: Sequence[int],
    progress: Progress,
    on_turn: Callable[[Any], None],
) -> None:
    """Run an episode from the model's next turn to its end, or to an infrastructure failure.

    Args:
        episode: The episode; it is the model's turn.
        policy: The model: a `Policy` or a `TextPolicy`.
        interpreter: The interpreter of the episode.
        seed: The numbers from which the seed of each turn derives.
        progress: The counters to update.
        on_turn: Called with each generation of the policy.
    """
    turn = 0
    while not episode.done:
        began = progress.begin("generating")
        try:
            asked = _ask(policy, episode, _mixed((*seed, turn)))
            if asked is None:
                break
            generation = await asked
        except PolicyUnavailable as error:
            _log.warning("%s: the policy failed: %s", episode.transcript.problem.id, error)
            episode.cut(StopReason.INFRASTRUCTURE)
            break
        finally:
            progress.end("generating", began)
        on_turn(generation)
        need = _take(policy, episode, generation, progress)
        if isinstance(need, GradeAnswer):
            began = progress.begin("grading")
            try:
                right = await is_equivalent_async(need.answer, need.gold)
            finally:
                progress.end("grading", began)
            episode.graded(right)
        elif need is not None:
            began = progress.begin("executing")
            try:
                execution = await interpreter.run_async(need)
            finally:
                seconds = progress.end("executing", began)
            if execution.outcome is Outcome.INFRASTRUCTURE:
                problem = episode.transcript.problem
                _log.warning("%s: the sandbox failed: %s", problem.id, execution.error)
            episode.executed(execution, seconds)
        turn += 1


# `_ask`, `_take` and `Interpreter.run_async` are not coroutines: the garbage collector visits
# every object that lives while an episode waits, for thousands of episodes again and again.
def _ask(policy: Any, episode: Episode, seed: int) -> Awaitable[Any] | None:
    """Ask the policy for the next turn. `None`: the episode has no room left and was cut."""
    if isinstance(policy, TextPolicy):
        return policy.write(episode.transcript, episode.stop, seed)
    ids = episode.token_ids
    budget = min(episode.token_budget or 0, policy.context_length - len(ids))
    if budget < 1:
        episode.cut(StopReason.TOKEN_BUDGET)
        return None
    return policy.act(ids, episode.stop, budget, seed)


def _take(policy: Any, episode: Episode, generation: Any, progress: Progress) -> Need | None:
    """Add the policy's turn to the episode."""
    if not isinstance(policy, TextPolicy):
        progress.tokens += len(generation.token_ids)
        if not math.isfinite(sum(generation.logprobs)):
            raise NotFinite(
                "the model's log-probs are NaN or infinite: its weights are broken, or too large "
                "for their data type"
            )
        return episode.act_ids(generation)
    progress.tokens += len(generation.text)
    return episode.act(
        generation.text,
        generation.stop_reason == "length",
        generation.seconds,
        generation.form,
        generation.sent,
        generation.apart,
    )


def _mixed(numbers: Sequence[int]) -> int:
    """Hash several numbers to a seed of 64 bits."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
