"""Weights: a model's tensors on their way to a policy, by the names of transformers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from retool_env.errors import NotFinite

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, "torch.Tensor"] | Iterable[tuple[str, "torch.Tensor"]]
"""Tensors by the names of transformers, as `model.state_dict()` gives them, adapters merged."""


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Check that no weight is NaN or infinite.

    Args:
        tensors: Tensors of any shape by their names. Tensors of whole numbers, on the meta device,
            or without elements are not checked; of a sharded tensor, this process's shard is.
        what: The owner of the tensors, which begins the error text.

    Raises:
        NotFinite: If a weight is NaN or infinite. The message names the first such tensor.
    """
    import torch

    local = [(name, getattr(tensor.detach(), "_local_tensor", tensor)) for name, tensor in tensors]
    local = [
        (name, tensor.detach())
        for name, tensor in local
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta"
    ]
    # The largest absolute value is NaN if an element is. It takes no memory of the tensor's size.
    largest = [torch.linalg.vector_norm(tensor, torch.inf) for _, tensor in local]
    if not largest:
        return
    finite = torch.stack([value.to(largest[0].device, torch.float64) for value in largest])
    for (name, _), sound in zip(local, finite.isfinite().tolist(), strict=True):
        if not sound:
            raise NotFinite(f"{what}: the weight {name} holds NaN or infinite values")


_FIRST, _SECOND = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9  # odd numbers of mixed bits
_SUMMED = 2**22  # elements at once, for which whole numbers of 64 bits need 32 MiB


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a contiguous tensor's elements as whole numbers, in the same memory.

    Args:
        tensor: The tensor, of any shape, whose elements have 1, 2, 4 or 8 bytes.

    Returns:
        A tensor of one dimension.
    """
    import torch

    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(-1).view(kinds[tensor.element_size()])


def checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
    """A number below 2⁶⁴ that depends on the names, the order of elements and all bits of tensors.

    The number does not depend on the order of the tensors, or on their device.

    Args:
        tensors: Pairs of name and tensor, each tensor in its own shape.
    """
    import torch

    total = 0
    for name, tensor in tensors:
        words = bits(tensor.detach().contiguous())
        value = 0
        for start in range(0, len(words), _SUMMED):
            part = words[start : start + _SUMMED].to(torch.int64)
            # Each place has a factor of its own, and the products wrap around at 64 bits.
            factors = torch.arange(start + 1, start + 1 + len(part), device=part.device) * _FIRST
            factors = (factors ^ (factors >> 31)) * _SECOND
            value += int(((part + 1) * factors).sum())
        total += value * (zlib.crc32(name.encode()) | 1)
    return total % 2**64


@dataclass(frozen=True)
class Parts:
    """Weights that the processes of a run write together; see `Policy.write_part`."""

    name: str
    """The name of the weights: their version, a hyphen, and letters of this update alone."""
    ranks: int
    """The number of the processes."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, in the form in which peft saves it."""

    config: Mapping[str, Any]
    """The values of `adapter_config.json`."""
    tensors: Weights
    """The tensors of `adapter_model.safetensors`, by name."""


@dataclass(frozen=True)
class Inventory:
    """The names and shapes of a model's weights."""

    shapes: Mapping[str, torch.Size]
    """The shape of each weight, by name."""
    first_names: Mapping[str, str]
    """The first name of each weight's tensor, by name: a tied output layer has the embedding's
    name.
    """
    elements: int
    """The number of all weights' elements."""

    @classmethod
    def of(cls, model: str) -> Self:
        """Read the inventory of a model from its configuration; no weights are loaded.

        Args:
            model: The folder of a checkpoint, or a Hub id.

        Raises:
            OSError: If the configuration is not found.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return cls.of_tensors(built.state_dict(keep_vars=True))

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Make the inventory of a model's tensors.

        Args:
            tensors: The tensors of `model.state_dict(keep_vars=True)`, in their shapes.
        """
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            first.setdefault(id(tensor), name)
        return cls(
            {name: tensor.shape for name, tensor in tensors.items()},
            {name: first[id(tensor)] for name, tensor in tensors.items()},
            sum(tensors[name].numel() for name in first.values()),
        )

    def checked(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over weights, and check them meanwhile.

        Args:
            weights: All weights of the model.

        Yields:
            The first name of each tensor, and the tensor.

        Raises:
            ValueError: If names or shapes differ from the model's, or, at the end, if weights are
                missing.
        """
        missing = dict.fromkeys(self.first_names.values())
        for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
            if name not in self.shapes:
                raise ValueError(
                    f"the model has no weight {name!r}: merge adapters, and remove the prefixes of "
                    "wrappers"
                )
            if tensor.shape != self.shapes[name]:
                raise ValueError(
                    f"{name!r} has the shape {tuple(tensor.shape)}, but "
                    f"{tuple(self.shapes[name])} in the model"
                )
            first = self.first_names[name]
            if first in missing:
                del missing[first]
                yield first, tensor
        if missing:
            raise ValueError(
                f"{len(missing)} of the model's weights are missing, for example "
                f"{next(iter(missing))!r}"
            )
