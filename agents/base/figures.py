"""Figures of a training step: means over the model's tokens, and over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from retool_env.training.figures import Distance


class Sums:
    """Figures of a training step, summed over the tokens of all its updates."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, torch.Tensor] = {}
        self.distance = Distance()
        self._norms: dict[str, list[float]] = {}

    @torch.no_grad()
    def add(self, mask: torch.Tensor, **values: torch.Tensor) -> None:
        """Add the values of an update's tokens.

        Args:
            mask: 1 on the counted tokens, shape `(B, T)`.
            **values: The values of each figure, shape `(B, T)`, 0 outside the mask.
        """
        for name, numbers in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + numbers.float().sum()
            self._tokens[name] = self._tokens.get(name, 0) + mask.sum()

    def norm(self, name: str, norm: torch.Tensor) -> None:
        """Add the norm of an update's gradient.

        Args:
            name: The model's name in the figure `grad_norm/<name>`.
            norm: The norm, shape `()`.
        """
        self._norms.setdefault(f"grad_norm/{name}", []).append(norm.item())

    def figures(
        self,
        total: Callable[[torch.Tensor], torch.Tensor],
        gather: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """The step's figures. All processes call this method together.

        Args:
            total: Returns the sum of a tensor (any shape) over all processes.
            gather: Returns the tensors of all processes, joined along the first dimension, shape
                `(processes * N, ...)`.

        Returns:
            Means over tokens, the figures of the policy's distance, and mean gradient norms.
        """
        names = list(self._sums)
        if not names:
            return {}
        sums = total(torch.stack([self._sums[name] for name in names])).tolist()
        tokens = total(torch.stack([self._tokens[name] for name in names])).tolist()
        figures = {n: s / max(t, 1) for n, s, t in zip(names, sums, tokens, strict=True)}
        norms = {name: sum(values) / len(values) for name, values in self._norms.items()}
        return figures | self.distance.figures(gather) | norms


def pooled(per_process: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The mean of each figure over the numbers of all processes.

    Args:
        per_process: For each process, the numbers of each figure.
    """
    pool: dict[str, list[float]] = {}
    for figures in per_process:
        for name, numbers in figures.items():
            pool.setdefault(name, []).extend(numbers)
    return {name: sum(numbers) / len(numbers) for name, numbers in pool.items() if numbers}
