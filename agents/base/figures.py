"""Figures of a training step: means over the model's tokens, and over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from retool_env.training.figures import Distance


class Sums:
    """Figures of a step, summed token by token over its updates."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, torch.Tensor] = {}
        self.distance = Distance()
        self._norms: dict[str, list[float]] = {}

    @torch.no_grad()
    def add(self, mask: torch.Tensor, **each: torch.Tensor) -> None:
        """Count numbers of tokens, 0 outside the mask."""
        for name, values in each.items():
            self._sums[name] = self._sums.get(name, 0.0) + values.float().sum()
            self._tokens[name] = self._tokens.get(name, 0) + mask.sum()

    def norm(self, name: str, norm: torch.Tensor) -> None:
        """Count a gradient's norm."""
        self._norms.setdefault(f"grad_norm/{name}", []).append(norm.item())

    def figures(
        self,
        total: Callable[[torch.Tensor], torch.Tensor],
        gather: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """Means over tokens; all processes call it.

        Args:
            total: The sum of a tensor over all processes.
            gather: The tensors of all processes.
        """
        names = list(self._sums)
        if not names:
            return {}
        sums = total(torch.stack([self._sums[name] for name in names])).tolist()
        tokens = total(torch.stack([self._tokens[name] for name in names])).tolist()
        figures = {n: s / max(t, 1) for n, s, t in zip(names, sums, tokens, strict=True)}
        norms = {name: sum(each) / len(each) for name, each in self._norms.items()}
        return figures | self.distance.figures(gather) | norms


def pooled(each: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The mean of each figure's numbers, over those of all processes."""
    found: dict[str, list[float]] = {}
    for figures in each:
        for name, numbers in figures.items():
            found.setdefault(name, []).extend(numbers)
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items() if numbers}
