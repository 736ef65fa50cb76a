"""Weights as exact deltas against the version before, as safetensors files for other processes.

After a step with a small learning rate most weights have the same bits in bfloat16 as before. A
delta stores the places and the new bits of the other elements. So it is exact, and any number of
deltas in a row is exact. The folder of a version holds the changes. Its file `chain.json` lists all
files that make the version, from the last whole part of each process on, and a checksum of the
whole. So a reader needs no earlier version: it merges the files tensor by tensor. It finds older
files in the page cache if it has read them before.

Each process decides alone whether its part is whole or a delta. A part is whole at first, when the
deltas since the last whole part have its size, and after a server has refused weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, override

from retool_env.rollout.weight_files import (
    MARK,
    PartFiles,
    WeightFiles,
    cast,
    own_tensors,
    read_parts,
    write_json,
)
from retool_env.rollout.weights import bits, checksum

if TYPE_CHECKING:
    import torch

CHAIN = "chain.json"
"""The name of the file that lists the files of a version."""

_REFUSED = "REFUSED"  # the name of a file: a server did not load the folder
_INDICES, _VALUES = "indices:", "values:"  # no name of a tensor has a colon
_MOST_DELTAS = 100  # a reader opens all files of a chain


def difference(name: str, old: torch.Tensor | None, new: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors to store on the CPU, so that a reader of an older tensor gets the new one.

    Args:
        name: The tensor's name.
        old: The older tensor, of any shape, on any device. `None`: the reader has no such tensor.
        new: The new tensor, contiguous, of the same shape and data type.

    Returns:
        Nothing if all bits are equal; places and values of the elements that differ; or the tensor
        itself, in its own memory, if that is not larger.
    """
    import torch

    if old is not None:
        changed = bits(new) != bits(old.to(new.device))
        count = int(changed.sum())
        if not count:
            return {}
        kind = torch.int32 if new.numel() < 2**31 else torch.int64
        if count * (kind.itemsize + new.element_size()) < new.nbytes:
            places = changed.nonzero().view(-1)
            values = new.view(-1)[places]
            return {_INDICES + name: places.to(kind).cpu(), _VALUES + name: values.cpu()}
    return {name: new.to("cpu", copy=True)}


class MergedWeights:
    """The weights of a folder that `DeltaFiles` wrote, merged tensor by tensor.

    Args:
        folder: The folder.
        device: The device of the tensors.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        self._folder, self._device = Path(folder), device
        self._chain = json.loads((self._folder / CHAIN).read_text("utf-8"))
        self._sum = 0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over pairs of a tensor's name and the tensor."""
        from safetensors import safe_open

        self._sum = 0
        with ExitStack() as stack:
            for files in self._chain["parts"]:
                sources: dict[str, list[Any]] = {}
                for path in files:
                    file = stack.enter_context(safe_open(self._folder / path, "pt"))
                    for key in file.keys():  # noqa: SIM118  # a file is no mapping
                        if key.startswith(_INDICES):
                            sources[key.removeprefix(_INDICES)].append(file)
                        elif not key.startswith(_VALUES):
                            sources[key] = [file]
                for name, (whole, *deltas) in sources.items():
                    # A copy: the tensor of a file may be the file itself, mapped into the memory.
                    tensor = whole.get_tensor(name).to(self._device, copy=bool(deltas))
                    for file in deltas:
                        places = file.get_tensor(_INDICES + name).to(self._device).long()
                        values = file.get_tensor(_VALUES + name).to(self._device)
                        tensor.view(-1)[places] = values
                    self._sum += checksum([(name, tensor)])
                    yield name, tensor

    def check(self) -> None:
        """Check the tensors of the last iteration.

        Raises:
            OSError: If their checksum differs from the checksum of the weights that were sent.
        """
        if (found := self._sum % 2**64) != self._chain["checksum"]:
            raise OSError(
                f"the weights in {self._folder} have the checksum {found}, not "
                f"{self._chain['checksum']}: files of an earlier version differ here"
            )


@dataclass
class _Sent:
    """The part of the last version that this process wrote."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    """Its tensors on the CPU."""
    size: int
    """The number of their bytes."""
    deltas: int
    """The number of bytes in the deltas since the last whole part."""


class DeltaFiles(WeightFiles):
    """Weights in a folder for other processes, as deltas against the version before.

    Each process keeps its part of the last version in its memory, in the data type of the files.
    Older folders stay as long as a version that is kept, or being read, is made of their files.

    Args:
        folder: See `WeightFiles`.
        dtype: See `WeightFiles`.

    Raises:
        SettingsError: If the data type is unknown.
    """

    def __init__(self, folder: str | Path | None, dtype: str = "bfloat16") -> None:
        super().__init__(folder, dtype)
        self._sent: _Sent | None = None
        self._chains: dict[str, set[str]] = {}  # the folders whose files a version is made of

    @override
    def refuse(self, path: str) -> None:
        folder = Path(path)
        with suppress(OSError):
            if (folder / CHAIN).exists():
                (folder / _REFUSED).touch()

    @override
    def _write_part(
        self,
        path: Path,
        weights: Iterable[tuple[str, torch.Tensor]],
        rank: int,
        ranks: int,
        cancelled: Callable[[], bool],
    ) -> None:
        # If this fails, nothing is known to have been sent, and the next part is whole.
        last, self._sent = self._base(), None
        old = last.tensors if last else {}
        tensors: dict[str, torch.Tensor] = {}
        part, total, written = PartFiles(path, rank), 0, 0
        for name, tensor in own_tensors(weights, rank, ranks, cancelled):
            new = cast(tensor, self._kind())
            total += checksum([(name, new)])
            stored = difference(name, old.get(name), new)
            tensors[name] = stored[name] if name in stored else old[name]
            if (places := stored.get(_INDICES + name)) is not None:
                tensors[name].view(-1)[places.long()] = stored[_VALUES + name]
            written += sum(each.nbytes for each in stored.values())
            part.add(name, stored)
        part.end(base=last and last.folder.name, checksum=total)
        size = sum(tensor.nbytes for tensor in tensors.values())
        deltas = last.deltas + max(written, size // _MOST_DELTAS) if last else 0
        self._sent = _Sent(path, tensors, size, deltas)

    def _base(self) -> _Sent | None:
        """The part against which the next part is a delta. `None`: the next part is whole."""
        last = self._sent
        if last is None or last.deltas >= last.size:
            return None
        # Without a mark, the other processes did not write their parts, or it has been removed.
        usable = (last.folder / MARK).exists() and not (last.folder / _REFUSED).exists()
        return last if usable else None

    @override
    def _finish(self, path: Path, names: Iterable[str], ranks: int) -> None:
        sizes: dict[str, int] = {}
        chains: list[list[str]] = []
        total = 0
        for rank, part in enumerate(read_parts(path, names, ranks)):
            chain: list[str] = []
            if part["base"]:
                base = path.with_name(part["base"])
                older = json.loads((base / MARK).read_text("utf-8"))["files"]
                chain = json.loads((base / CHAIN).read_text("utf-8"))["parts"][rank]
                sizes |= {name: older[name] for name in chain}
            own = {f"../{path.name}/{name}": size for name, size in part["files"].items()}
            sizes |= own
            chains.append([*chain, *own])
            total += part["checksum"]
        self._chains[str(path)] = {str(path.parent / Path(name).parts[1]) for name in sizes}
        write_json(path / CHAIN, {"checksum": total % 2**64, "parts": chains})
        write_json(path / MARK, {"files": {**sizes, CHAIN: (path / CHAIN).stat().st_size}})

    @override
    def _needed(self) -> set[str]:
        needed = super()._needed()
        return needed.union(*(self._chains.get(path, ()) for path in needed))
