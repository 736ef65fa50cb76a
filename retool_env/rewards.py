"""What a finished episode earns: presets, and how to pass one's own.

A reward is a function of a graded transcript. It sees `correct`, which was found from the model's answer tag alone,
and the model's calls; what a program printed earns nothing by itself.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from retool_env.errors import SettingsError
from retool_env.transcript import Transcript

Reward = Callable[[Transcript], float]


def paper(transcript: Transcript) -> float:
    """+1 for an answer that is equivalent to the problem's, -1 otherwise (arXiv 2504.11536, equation 2)."""
    return 1.0 if transcript.correct else -1.0


def verl(transcript: Transcript) -> float:
    """The public verl recipe's: as `paper`, but a wrong answer with n calls earns min(-0.6, -1 + 0.1 n)."""
    return 1.0 if transcript.correct else min(-0.6, -1.0 + 0.1 * len(transcript.calls))


PRESETS: dict[str, Reward] = {"paper": paper, "verl": verl}


def get_reward(reward: str | Reward) -> Reward:
    """A preset by its name, or the given function.

    Raises:
        ValueError: If there is no preset of that name.
    """
    if callable(reward):
        return reward
    if not isinstance(reward, str) or reward not in PRESETS:
        raise SettingsError(
            f"no reward preset {reward!r}; there are {', '.join(PRESETS)}, or pass a function"
        )
    return PRESETS[reward]


def earned(reward: str | Reward, transcript: Transcript) -> float:
    """What a transcript earns.

    Args:
        reward: A preset's name, or a function.
        transcript: What it is given.

    Raises:
        ValueError: If there is no preset of that name.
        TypeError: If the function returns anything but a finite number, of Python or numpy. It is named, with what it returned.
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
