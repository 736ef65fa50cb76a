"""GSPO (arXiv 2507.18071, section 4.1): the ratio of sequences, not of tokens.

The ratio of a sequence, s_i = exp(mean over the response's tokens of log pi / pi_old), replaces the
ratios of its tokens and is clipped as a whole. Interpreter tokens don't enter the mean. The ratio
is so near 1 that the paper's clips are 3e-4 and 4e-4, which is less than the rounding error between
engine and trainer. So the trainer's log-probs are the old log-probs, and importance weights correct
the engine's mismatch (`correction=token`). With `correction=ratio` the clips cut off the rounding
error and much of the gradient: `clip_ratio/region_mean` shows how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.base.settings import setting
from retool_env.training.correction import Correction


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's settings, with GSPO's defaults."""

    name: str = "gspo"
    loss: str = setting("grpo", "TRL's loss_type: the mean over a response, then over responses")
    clip_low: float = setting(3e-4, "lower clip of the sequence's ratio")
    clip_high: float = setting(4e-4, "upper clip of the sequence's ratio")
    correction: Correction = "token"


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run GSPO with `grpo.train`.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The folder of the trained model.
    """
    return grpo.train(settings, folder, resume, arguments={"importance_sampling_level": "sequence"})
