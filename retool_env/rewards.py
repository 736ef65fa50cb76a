"""What a finished episode earns: presets, and how to pass one's own.

A reward is a function of a graded transcript. It sees `correct`, which was found from the model's answer tag alone,
and the model's calls; what a program printed earns nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable

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
    if reward not in PRESETS:
        raise ValueError(
            f"no reward preset {reward!r}; there are {', '.join(PRESETS)}, or pass a function"
        )
    return PRESETS[reward]
