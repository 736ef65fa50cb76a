"""The paired permutation test of a mean difference: the signs of the differences are flipped.

If two models are alike, each problem's difference is as likely with the other sign. The p-value is
the share of all choices of signs whose sum is as far from 0 as the observed sum.

Differences of one size are exchangeable, so only the number of flipped signs counts for each size,
and this number is binomial. Two samples a problem have two sizes, a half and one. The distribution
of the sum is therefore enumerated for few sizes, even with many problems; with a single size it is
the binomial of McNemar's exact test. For many sizes, the numbers are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MOST_SUMS = 1 << 17
"""The most sums that are enumerated. Beyond, `DRAWS` choices of signs are drawn."""

DRAWS = 20_000
"""The number of drawn choices of signs. The standard error of a p-value of 0.05 is 0.0015."""


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """The two-sided p-value of a mean difference of 0.

    Args:
        differences: The difference of each problem.
        seed: The seed of the drawn signs. Enumerated p-values do not depend on it.

    Returns:
        The p-value. It is 1 without a difference. A drawn p-value counts the observed signs as one
        of the draws, so that it is never 0.

    Example:
        >>> sign_flip_p([1, 1, 1, 1, -1, 0])
        0.375
    """
    # Rounding: 2/3 - 1/3 and 1/3 are one size.
    rounded = [round(abs(value), 9) for value in differences]
    sizes, counts = np.unique([value for value in rounded if value], return_counts=True)
    if not len(sizes):
        return 1.0
    least = abs(math.fsum(differences)) - 1e-7
    if math.prod(int(count) + 1 for count in counts) <= MOST_SUMS:
        sums, chances = np.zeros(1), np.ones(1)
        for size, count in zip(sizes, map(int, counts), strict=True):
            steps = size * (2 * np.arange(count + 1) - count)
            ways = [math.comb(count, flipped) / 2**count for flipped in range(count + 1)]
            sums = np.add.outer(sums, steps).ravel()
            chances = np.multiply.outer(chances, np.array(ways)).ravel()
        return min(1.0, math.fsum(chances[np.abs(sums) >= least]))
    flipped = np.random.default_rng(seed).binomial(counts, 0.5, (DRAWS, len(counts)))
    extreme = int((np.abs((2 * flipped - counts) @ sizes) >= least).sum())
    return (extreme + 1) / (DRAWS + 1)
