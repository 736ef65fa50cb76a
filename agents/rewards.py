"""Rewards: the environment's reward, and the bonus that an algorithm adds to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agents.base.objective import Bonus
from agents.base.settings import SettingsError
from retool_env.training.figures import episode_reward
from retool_env.training.rows import is_trainable
from retool_env.transcript import Transcript


def soft_overlong(length: int, budget: int, cache: float) -> float:
    """The soft overlong punishment (DAPO, arXiv 2503.14476, equation 13).

    It is 0 up to `budget - cache` tokens, falls linearly to -1 at `budget`, and stays -1 beyond.

    Args:
        length: Tokens of the response, with the interpreter's.
        budget: Token budget of a response.
        cache: Last tokens of the budget, over which the punishment grows.
    """
    return -min(max(length - (budget - cache), 0.0) / cache, 1.0)


def overlong_bonus(share: float) -> Bonus | None:
    """The bonus of the setting `overlong`: `soft_overlong` over the last share of the budget.

    Args:
        share: The setting `overlong`, from 0 to 1.

    Returns:
        The bonus; `None` if the share is 0.

    Raises:
        SettingsError: If the share is out of range.
    """
    if not 0 <= share <= 1:
        raise SettingsError(f"overlong must be a share from 0 to 1, not {share}")
    if not share:
        return None

    def bonus(transcript: Transcript, budget: int) -> float:
        # The budget also counts the interpreter's tokens, so they count here.
        return soft_overlong(len(transcript.completion_ids), budget, share * budget)

    return bonus


def reward_functions(
    bonus: Bonus | None, budget: int | None
) -> list[Callable[..., list[float | None]]]:
    """Reward functions in TRL's form: the environment's reward and, if there is one, the bonus.

    Args:
        bonus: Computes the bonus, which episodes that are trained on get; `None`: no bonus.
        budget: Token budget of an episode.
    """
    if bonus is None:
        return [episode_reward]
    assert budget is not None  # every run has a budget

    def episode_bonus(transcript: Sequence[Transcript], **_: Any) -> list[float | None]:
        return [bonus(t, budget) if is_trainable(t) else None for t in transcript]

    return [episode_reward, episode_bonus]
