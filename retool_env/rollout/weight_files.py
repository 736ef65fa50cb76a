"""Weights as safetensors files for other processes.

One version of the weights is a folder. Every process of a run writes its part of the tensors, and a
list of its files. When all parts are written, one process writes an index of all tensors, and last
the mark: the file `STABLE`, which lists the files with their sizes. A reader waits for the mark,
and until it sees every file in its full size; on a shared file system that may be a while later.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.errors import SettingsError
from retool_env.rollout.weights import Inventory, Parts, Weights

if TYPE_CHECKING:
    import torch

DTYPES = ("bfloat16", "float16", "float32")
"""The data types in which weights can be written."""
MARK = "STABLE"
"""The name of the file that is written when all other files of a folder are complete."""

_INDEX = "model.safetensors.index.json"  # the name that vLLM and transformers look for
_SHARD_BYTES = 2 * 2**30  # the most memory for an iterator's tensors, beside the files
SEEN_SECONDS = 60.0
"""A shared file system may show another machine's file this late."""
_LOOK_SECONDS = 0.2


def check_dtype(name: str) -> str:
    """Return the name of a data type of weights, if it is valid.

    Args:
        name: A name of `DTYPES`.

    Raises:
        SettingsError: If the name is unknown.
    """
    if name not in DTYPES:
        raise SettingsError(f"weights_dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    return name


def write_part(
    folder: Path,
    weights: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    rank: int = 0,
    ranks: int = 1,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Write one process's part of the weights into a folder.

    All processes iterate over the same weights, and each tensor belongs to one process's part, so
    that all parts have about the same size. Everybody who may read the folder may read the files.

    Args:
        folder: An existing folder.
        weights: All weights of the model, each tensor in its own shape and under one name.
        dtype: The data type in which floating-point tensors are written.
        rank: The number of this process, from 0.
        ranks: The number of the processes.
        cancelled: Asked before each tensor. Once it returns `True`, nothing more is read.

    Raises:
        InterruptedError: If the writing was cancelled.
        OSError: If the weights can't be written.
    """
    part = PartFiles(folder, rank)
    for name, tensor in own_tensors(weights, rank, ranks, cancelled):
        part.add(name, {name: cast(tensor, dtype).cpu()})
    part.end()


def own_tensors(
    weights: Iterable[tuple[str, torch.Tensor]],
    rank: int,
    ranks: int,
    cancelled: Callable[[], bool],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over one process's part of the weights.

    Args:
        weights: See `write_part`, each tensor of any shape.
        rank: See `write_part`.
        ranks: See `write_part`.
        cancelled: See `write_part`.
    """
    sizes = [0] * ranks
    for name, tensor in weights:
        if cancelled():
            raise InterruptedError("the update was cancelled while its weights were written")
        owner = sizes.index(min(sizes))
        sizes[owner] += tensor.numel()
        if owner == rank:
            yield name, tensor


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor, in the data type if it is a floating-point tensor."""
    return tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()


class PartFiles:
    """The files of one process's part of the weights.

    Args:
        folder: An existing folder.
        rank: The number of this process, from 0.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"part-{rank:03}"
        self._files: dict[str, int] = {}
        self._names: dict[str, str | None] = {}
        self._shard: dict[str, torch.Tensor] = {}

    def add(self, name: str, stored: Mapping[str, torch.Tensor]) -> None:
        """Add a tensor, in the form in which it is stored, by the names in the file.

        It is written when there are enough tensors for a file.
        """
        self._names[name] = None
        self._shard |= stored
        if sum(tensor.nbytes for tensor in self._shard.values()) >= _SHARD_BYTES:
            self._save()

    def end(self, **more: object) -> None:
        """Write the last tensors, and the list of the part.

        Args:
            **more: Further values of the list.
        """
        if self._shard:
            self._save()
        content = {"files": self._files, "weights": self._names, **more}
        write_json(self._path.with_suffix(".json"), content)

    def _save(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        file = self._path.with_name(f"{self._path.name}-{len(self._files):05}.safetensors")
        try:
            save_file(self._shard, file)
        except SafetensorError as error:  # for example on a full disk
            raise OSError(f"the weights can't be written as {file}: {error}") from error
        file.chmod(0o644)  # `save_file` allows the owner alone, but servers may be other users
        self._files[file.name] = file.stat().st_size
        self._names.update(dict.fromkeys(self._shard, file.name))
        self._shard = {}


def finish(folder: Path, names: Iterable[str], ranks: int = 1) -> None:
    """Write the index of all parts, and then the mark.

    Args:
        folder: The folder, into which every process has written its part.
        names: The names of all tensors.
        ranks: The number of the processes.

    Raises:
        OSError: If a part is missing, or a file can't be written.
    """
    parts = read_parts(folder, names, ranks)
    files = {name: size for part in parts for name, size in part["files"].items()}
    owners = {name: file for part in parts for name, file in part["weights"].items()}
    total = sum(files.values())
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": owners})
    files[_INDEX] = (folder / _INDEX).stat().st_size
    write_json(folder / MARK, {"files": files})


def read_parts(folder: Path, names: Iterable[str], ranks: int) -> list[dict[str, Any]]:
    """Read the lists of all parts, by rank.

    Args:
        folder: See `finish`.
        names: See `finish`.
        ranks: See `finish`.

    Raises:
        OSError: If a part or a tensor is missing.
    """
    lists = [folder / f"part-{rank:03}.json" for rank in range(ranks)]
    _wait(lambda: next((f"{each} is missing" for each in lists if not each.exists()), ""))
    parts = [json.loads(each.read_text("utf-8")) for each in lists]
    if missing := set(names).difference(*(part["weights"] for part in parts)):
        raise OSError(f"{folder} lacks {len(missing)} weights, for example {min(missing)!r}")
    return parts


def wait_until_stable(folder: str | Path) -> None:
    """Wait until weights are complete: until the mark and all files that it lists are there.

    Args:
        folder: The folder of the weights.

    Raises:
        OSError: If they are not complete after a minute.
    """
    folder = Path(folder)

    def lacks() -> str:
        mark = folder / MARK
        if not mark.exists():
            return f"{mark} is missing, the mark of complete weights"
        for name, size in json.loads(mark.read_text("utf-8"))["files"].items():
            file = folder / name
            found = file.stat().st_size if file.exists() else 0
            if found != size:
                return f"{file} has {found} bytes, and should have {size}"
        return ""

    _wait(lacks)


def _wait(lacks: Callable[[], str]) -> None:
    """Wait until nothing is lacking on a shared file system.

    Args:
        lacks: Returns the words for the first thing that is lacking, or nothing.
    """
    end = time.monotonic() + SEEN_SECONDS
    while words := lacks():
        if time.monotonic() >= end:
            raise FileNotFoundError(
                f"{words}; is the folder of weights the same on every machine of the run and of "
                "the servers?"
            )
        time.sleep(_LOOK_SECONDS)


def write_json(path: Path, content: object) -> None:
    """Write a file that a reader sees whole or not at all.

    Args:
        path: The file.
        content: The value.
    """
    written = path.with_name(f".{path.name}")
    written.write_text(json.dumps(content), "utf-8")
    written.chmod(0o644)
    written.replace(path)


async def write_whole_model(
    folder: Path, inventory: Inventory, weights: Weights, dtype: torch.dtype
) -> None:
    """Write all weights of a model into a folder, with index and mark.

    A tensor with several names is written once. When this has ended, also by a cancellation, the
    weights are not read any more and nothing more is written.

    Args:
        folder: An existing folder.
        inventory: The names and shapes of the model's weights.
        weights: All weights of the model.
        dtype: The data type in which floating-point tensors are written.

    Raises:
        ValueError: If names or shapes differ from the model's.
        OSError: If the weights can't be written.
    """
    whole = inventory.checked(weights)
    await _in_thread(functools.partial(write_part, folder, whole, dtype, 0, 1))
    await asyncio.to_thread(finish, folder, inventory.first_names.values())


async def _in_thread(write: Callable[[Callable[[], bool]], None]) -> None:
    """Write in a thread, which has ended when this ends; its argument tells of a cancellation."""
    cancelled = threading.Event()
    writing = asyncio.ensure_future(asyncio.to_thread(write, cancelled.is_set))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        # A thread can't be cancelled: it sees the event before its next tensor.
        cancelled.set()
        while not writing.done():
            with suppress(asyncio.CancelledError):  # a second cancellation
                await asyncio.wait([writing])
        raise


class WeightFiles:
    """Weights in a folder for other processes: the latest, and older weights while they are read.

    Args:
        folder: The parent of the weights' folders, created if missing. `None`: nothing can be
            written.
        dtype: The data type in which floating-point tensors are written, one of `DTYPES`.

    Raises:
        SettingsError: If the data type is unknown.
    """

    def __init__(self, folder: str | Path | None, dtype: str = "bfloat16") -> None:
        self.dtype = check_dtype(dtype)
        self._folder = None if folder is None else Path(folder).absolute()
        self._inventory: Inventory | None = None
        self._written: set[str] = set()
        self._kept = ""
        self._readers: Counter[str] = Counter()

    async def write(self, name: str, weights: Weights | Parts, model: str) -> str:
        """Write weights into a new folder, or complete the parts that several processes wrote.

        Args:
            name: The name of the new folder.
            weights: All weights of the model, or the parts that `write_part` has written.
            model: The folder of a checkpoint or a Hub id, whose configuration tells the names and
                shapes of the weights.

        Returns:
            The path of the new folder.

        Raises:
            ValueError: If there is no parent folder, or names or shapes differ from the model's.
            OSError: If the weights can't be written, or the configuration is not found.
        """
        path = self._path(name)
        inventory = await asyncio.to_thread(self._inventory_of, model)
        names = inventory.first_names.values()
        self._written.add(str(path))
        try:
            if isinstance(weights, Parts):
                await asyncio.to_thread(self._finish, path, names, weights.ranks)
            else:
                path.mkdir(parents=True)
                whole = inventory.checked(weights)
                await _in_thread(functools.partial(self._write_part, path, whole, 0, 1))
                await asyncio.to_thread(self._finish, path, names, 1)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return str(path)

    def write_part(self, parts: Parts, weights: Weights, model: str, rank: int) -> None:
        """Write one process's part of the weights; see `Policy.write_part`.

        Args:
            parts: The parts of all processes.
            weights: All weights of the model.
            model: See `write`.
            rank: The number of this process, from 0.

        Raises:
            ValueError: As in `write`.
            OSError: As in `write`.
        """
        path, inventory = self._path(parts.name), self._inventory_of(model)
        if rank == 0:
            self._written.add(str(path))
        path.mkdir(parents=True, exist_ok=True)
        self._write_part(path, inventory.checked(weights), rank, parts.ranks, lambda: False)

    def _write_part(
        self,
        path: Path,
        weights: Iterable[tuple[str, torch.Tensor]],
        rank: int,
        ranks: int,
        cancelled: Callable[[], bool],
    ) -> None:
        write_part(path, weights, self._kind(), rank, ranks, cancelled)

    def _finish(self, path: Path, names: Iterable[str], ranks: int) -> None:
        finish(path, names, ranks)

    def refuse(self, path: str) -> None:
        """Note that a server did not load a folder of weights. By default nothing follows."""

    def in_memory(self, weights: Weights, model: str) -> list[tuple[str, torch.Tensor]]:
        """All weights in this process's memory, in the data type in which they would be written.

        Args:
            weights: All weights of the model.
            model: See `write`.

        Raises:
            ValueError: If names or shapes differ from the model's.
            OSError: If the configuration is not found.
        """
        checked = self._inventory_of(model).checked(weights)
        return [(name, cast(tensor, self._kind()).cpu()) for name, tensor in checked]

    def keep(self, path: str) -> None:
        """Keep this folder only. Other folders are removed as soon as they are not being read."""
        self._kept = path
        self._remove()

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Keep a folder during a `with` block."""
        self._readers[path] += 1
        try:
            yield
        finally:
            self._readers[path] -= 1
            self._remove()

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise ValueError(
                "tensors reach servers as files: make the policy with weights_folder, a folder at "
                "the same path on every server's machine; or save a checkpoint that the servers "
                "can read, and give its folder"
            )
        return self._folder / name

    def _inventory_of(self, model: str) -> Inventory:
        if self._inventory is None:
            try:
                self._inventory = Inventory.of(model)
            except OSError as error:
                raise OSError(
                    f"the model's configuration, which tells its tensors, was not found at "
                    f"{model!r}, its path on the servers: make it available here under that path: "
                    f"{error}"
                ) from error
        return self._inventory

    def _kind(self) -> torch.dtype:
        import torch

        kind: torch.dtype = getattr(torch, self.dtype)
        return kind

    def _remove(self) -> None:
        for path in self._written - self._needed():
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.exists(path):  # otherwise the next call tries again
                self._written.discard(path)

    def _needed(self) -> set[str]:
        """The folders that are kept or being read."""
        return {self._kept, *+self._readers}
