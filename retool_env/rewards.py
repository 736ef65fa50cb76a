"""Rewards: the presets, and the user's own functions.

A reward is a function of a graded transcript. It can use `correct`, the verdict on the model's
answer, and the model's calls. Printed output alone earns no reward.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from retool_env.errors import SettingsError
from retool_env.transcript import Transcript

Reward = Callable[[Transcript], float]
"""A function that returns the reward of a finished transcript."""


def paper(transcript: Transcript) -> float:
    """The paper's reward: +1 for a correct answer, else -1 (arXiv 2504.11536, equation 2)."""
    return 1.0 if transcript.correct else -1.0


def verl(transcript: Transcript) -> float:
    """The reward of verl's public recipe: +1, or min(-0.6, -1 + 0.1 n) for a wrong answer.

    n is the number of calls.
    """
    return 1.0 if transcript.correct else min(-0.6, -1.0 + 0.1 * len(transcript.calls))


PRESETS: dict[str, Reward] = {"paper": paper, "verl": verl}
"""The preset rewards, by name."""


def get_reward(reward: str | Reward) -> Reward:
    """The reward function of a setting.

    Args:
        reward: A preset's name, or a function, which is returned unchanged.

    Raises:
        ValueError: If no preset has this name.
    """
    if callable(reward):
        return reward
    if not isinstance(reward, str) or reward not in PRESETS:
        raise SettingsError(
            f"no reward preset {reward!r}; the presets are {', '.join(PRESETS)}, or pass a function"
        )
    return PRESETS[reward]


def earned(reward: str | Reward, transcript: Transcript) -> float:
    """The reward of a transcript.

    Args:
        reward: A preset's name, or a function.
        transcript: The finished transcript.

    Raises:
        ValueError: If no preset has this name.
        TypeError: If the function does not return a finite number of Python or numpy. The message
            names the function and its value.
    """
    function = get_reward(reward)
    value = function(transcript)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            if math.isfinite(number := float(value)):
                return number
        except OverflowError:
            pass
    name = getattr(function, "__qualname__", None) or repr(function)
    raise TypeError(f"the reward {name} must return a finite number, not {value!r:.80}")
