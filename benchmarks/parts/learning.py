"""Compares two learning curves: steps to an accuracy, area under the curve, and validity.

A curve consists of evaluations after some optimizer steps, with straight lines between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEAST_GAIN = 0.15
"""The gain of text-only training over its cold start that a valid comparison needs.

With less gain, the problems do not suit the model.
"""


@dataclass(frozen=True)
class Curve:
    """Held-out accuracy along a training run. All fields have one entry per evaluation.

    Raises:
        ValueError: If there are fewer than three evaluations, the fields differ in length, or the
            steps do not begin at 0 and rise.
    """

    steps: tuple[int, ...]
    """The optimizer step of each evaluation; the first is 0, the cold start."""
    accuracy: tuple[float, ...]
    """The accuracy on held-out problems, 0 to 1."""
    tokens: tuple[int, ...]
    """The number of tokens that training had sampled by then."""
    seconds: tuple[float, ...]
    """The time that training had taken by then."""

    def __post_init__(self) -> None:
        lengths = {len(self.steps), len(self.accuracy), len(self.tokens), len(self.seconds)}
        if len(lengths) > 1 or len(self.steps) < 3:
            raise ValueError("a curve needs at least three evaluations, and fields of one length")
        if self.steps[0] != 0 or any(np.diff(self.steps) <= 0):
            raise ValueError(f"the steps of a curve must begin at 0 and rise, unlike {self.steps}")

    @property
    def best(self) -> float:
        """The highest accuracy."""
        return max(self.accuracy)

    def first(self, level: float, of: str = "steps") -> float | None:
        """The cost until the accuracy first reaches a level.

        Args:
            level: The accuracy.
            of: The unit of the cost: `steps`, `tokens` or `seconds`.

        Returns:
            The cost, interpolated between evaluations; `None` if the level is never reached.
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
        """The mean accuracy over all steps: the area under the curve divided by its width."""
        return float(np.trapezoid(self.accuracy, self.steps) / (self.steps[-1] - self.steps[0]))


@dataclass(frozen=True)
class Calibration:
    """Whether text-only training learned enough for a valid comparison."""

    start: float
    """The accuracy of the text-only cold start."""
    gain: float
    """The mean accuracy of the last third of the training, minus `start`."""
    late_gain: float
    """The mean accuracy of the last third, minus the mean accuracy of the middle third."""

    @property
    def valid(self) -> bool:
        """Whether the gain is at least `LEAST_GAIN`, and accuracy still rose in the last third."""
        return self.gain >= LEAST_GAIN and self.late_gain > 0


def calibrate(text_only: Curve) -> Calibration:
    """Compute the gains of a text-only training run."""
    end = text_only.steps[-1]

    def mean(low: float, high: float) -> float:
        pairs = zip(text_only.steps, text_only.accuracy, strict=True)
        return float(np.mean([a for step, a in pairs if low * end < step <= high * end]))

    last = mean(2 / 3, 1)
    start = text_only.accuracy[0]
    return Calibration(start, last - start, last - mean(1 / 3, 2 / 3))


def compare(interpreter: Curve, text_only: Curve) -> dict[str, float | None]:
    """The ratio of steps to reach a level: interpreter arm over text-only arm.

    The levels lie at 25, 50, 75 and 100 % of the way from the better cold start to the best
    accuracy of the text-only arm.

    Args:
        interpreter: The curve of the interpreter arm.
        text_only: The curve of the text-only arm.

    Returns:
        The ratio by level; the last level is called `best`. The ratio is 0 if the interpreter arm
        starts at or above the level. It is `None` if one arm never reaches the level.
    """
    low, high = max(interpreter.accuracy[0], text_only.accuracy[0]), text_only.best
    levels = {f"{share:.0%}": low + share * (high - low) for share in (0.25, 0.5, 0.75)}
    ratios: dict[str, float | None] = {}
    for name, level in {**levels, "best": high}.items():
        ratios[name] = cost_ratio(interpreter, text_only, level)
    return ratios


def cost_ratio(
    interpreter: Curve, text_only: Curve, level: float, of: str = "steps"
) -> float | None:
    """The ratio of the costs of two arms until they first reach a level.

    Args:
        interpreter: The curve of the interpreter arm.
        text_only: The curve of the text-only arm.
        level: The accuracy.
        of: The unit of the cost: `steps`, `tokens` or `seconds`.

    Returns:
        The ratio; `None` if one arm never reaches the level, or text-only starts at it.
    """
    cost, text_cost = interpreter.first(level, of), text_only.first(level, of)
    return None if cost is None or not text_cost else cost / text_cost


def claim_holds(ratios: Mapping[str, float | None]) -> bool:
    """Whether the interpreter arm needs at most half the steps to text-only's best accuracy.

    The paper reports 400 steps against 1,080.
    """
    ratio = ratios["best"]
    return ratio is not None and ratio <= 0.5
