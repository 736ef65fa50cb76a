"""Learning curves compared: how many steps to an accuracy, the area below, and whether a comparison says anything.

Curves are evaluations at certain optimizer steps; between them they are taken as straight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEAST_GAIN = 0.15
"""What text-only training must gain over its own cold start, or else the problems are wrong."""


@dataclass(frozen=True)
class Curve:
    """Accuracy along a training. All are of the same length, of at least three points.

    Raises:
        ValueError: If they are not, or steps don't begin at 0 or don't rise.
    """

    steps: tuple[int, ...]
    """Optimizer steps after which it was evaluated; the first is 0, the cold start."""
    accuracy: tuple[float, ...]
    """On held-out problems."""
    tokens: tuple[int, ...]
    """Sampled by the model in training until then."""
    seconds: tuple[float, ...]
    """Of training until then."""

    def __post_init__(self) -> None:
        lengths = {len(self.steps), len(self.accuracy), len(self.tokens), len(self.seconds)}
        if len(lengths) > 1 or len(self.steps) < 3:
            raise ValueError("a curve has at least three points, each with all its figures")
        if self.steps[0] != 0 or any(np.diff(self.steps) <= 0):
            raise ValueError(f"steps begin at 0 and rise, unlike {self.steps}")

    @property
    def best(self) -> float:
        """The highest accuracy."""
        return max(self.accuracy)

    def first(self, level: float, of: str = "steps") -> float | None:
        """When the accuracy first reaches a level.

        Args:
            level: The accuracy.
            of: What counts: `steps`, `tokens` or `seconds`.

        Returns:
            So many, interpolated between evaluations; `None` if it never does.
        """
        along = getattr(self, of)
        for i, accuracy in enumerate(self.accuracy):
            if accuracy >= level:
                if not i:
                    return float(along[0])
                before = self.accuracy[i - 1]
                part = (level - before) / (accuracy - before)
                return float(along[i - 1] + part * (along[i] - along[i - 1]))
        return None

    @property
    def area(self) -> float:
        """The mean accuracy over all steps: the area below the curve by its width."""
        return float(np.trapezoid(self.accuracy, self.steps) / (self.steps[-1] - self.steps[0]))


@dataclass(frozen=True)
class Calibration:
    """Whether text-only training learned enough for a comparison to say anything."""

    start: float
    """Accuracy of its cold start."""
    gain: float
    """What its last third, on average, has over that."""
    late_gain: float
    """What its last third has over the third in the middle."""

    @property
    def valid(self) -> bool:
        """It gained `LEAST_GAIN`, and was still rising at half its budget."""
        return self.gain >= LEAST_GAIN and self.late_gain > 0


def calibrate(text_only: Curve) -> Calibration:
    """How text-only training went."""
    end = text_only.steps[-1]

    def mean(low: float, high: float) -> float:
        pairs = zip(text_only.steps, text_only.accuracy, strict=True)
        return float(np.mean([a for step, a in pairs if low * end < step <= high * end]))

    last = mean(2 / 3, 1)
    start = text_only.accuracy[0]
    return Calibration(start, last - start, last - mean(1 / 3, 2 / 3))


def compare(interpreter: Curve, text_only: Curve) -> dict[str, float | None]:
    """The interpreter's steps over text-only's, at three levels and at text-only's best.

    The levels lie at a quarter, a half and three quarters of the way from the better cold start to text-only's best.

    Returns:
        The ratio by level, the last called `best`: 0 where the interpreter's cold start is there already; `None` where one of
        the two never arrives.
    """
    low, high = max(interpreter.accuracy[0], text_only.accuracy[0]), text_only.best
    levels = {f"{share:.0%}": low + share * (high - low) for share in (0.25, 0.5, 0.75)}
    ratios: dict[str, float | None] = {}
    for name, level in {**levels, "best": high}.items():
        ours, theirs = interpreter.first(level), text_only.first(level)
        ratios[name] = None if ours is None or not theirs else ours / theirs
    return ratios


def claim_holds(ratios: Mapping[str, float | None]) -> bool:
    """Whether the interpreter reached text-only's best accuracy in at most half the steps (the paper: 400 against 1,080)."""
    ratio = ratios["best"]
    return ratio is not None and ratio <= 0.5
