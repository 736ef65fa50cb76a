"""GSPO (arXiv 2507.18071, section 4.1): the ratio of sequences, not of tokens.

s_i = exp(mean over the response's tokens of log pi / pi_old) takes the place of each token's ratio, and is clipped as a
whole; interpreter tokens are in no mean. So near 1 that the paper's clips are 1e-4s: where the engine computes otherwise
than the trainer (bfloat16, other kernels), look at `offpolicy/difference` and `clip_ratio/region_mean`, and widen them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents import grpo
from agents.settings import setting


@dataclass(frozen=True)
class Settings(grpo.Settings):
    """GRPO's, with the paper's defaults."""

    name: str = setting("gspo", "the run's folder is runs/<name>")
    loss: str = setting("grpo", "TRL's loss_type: the mean over a response, then over responses")
    clip_low: float = setting(3e-4, "lower clip of the sequence's ratio")
    clip_high: float = setting(4e-4, "upper clip of the sequence's ratio")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run GSPO; see `grpo.train`."""
    return grpo.train(settings, folder, resume, arguments={"importance_sampling_level": "sequence"})
