"""GSPO (arXiv 2507.18071, section 4.1): the ratio of sequences, not of tokens.

s_i = exp(mean over the response's tokens of log pi / pi_old) takes the place of each token's ratio, and is clipped as a
whole; interpreter tokens are in no mean. The ratio is so near 1 that the paper's clips are 3e-4 and 4e-4, less than the rounding
in which an engine differs from the trainer. So the old log-probs are the trainer's own, and importance weights correct the
engine's mismatch (`correction=token`). With `correction=ratio` the clips cut that rounding, and much of the gradient with it:
look at `clip_ratio/region_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.base.settings import setting
from retool_env.training.correction import Correction


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with the paper's defaults."""

    name: str = "gspo"
    loss: str = setting("grpo", "TRL's loss_type: the mean over a response, then over responses")
    clip_low: float = setting(3e-4, "lower clip of the sequence's ratio")
    clip_high: float = setting(4e-4, "upper clip of the sequence's ratio")
    correction: Correction = "token"


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run GSPO; see `grpo.train`."""
    return grpo.train(settings, folder, resume, arguments={"importance_sampling_level": "sequence"})
