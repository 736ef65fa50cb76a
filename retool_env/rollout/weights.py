"""Weights: a model's tensors on their way to a policy, also as files for another process."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, "torch.Tensor"] | Iterable[tuple[str, "torch.Tensor"]]
"""Tensors by the names of transformers, as `model.state_dict()` gives them, adapters merged."""

_SHARD_BYTES = 2 * 2**30  # the most memory for an iterator's tensors, beside the files
_MEMORY = "/dev/shm"
_PREFIX = "retool-weights-"


@dataclass(frozen=True)
class Inventory:
    """The names and shapes of a model's weights."""

    shapes: Mapping[str, torch.Size]
    """The shape of each weight, by name."""
    first_names: Mapping[str, str]
    """The first name of each weight's tensor, by name: a tied output layer has the embedding's
    name.
    """
    bytes: int
    """The size of all weights in float32."""

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
            sum(tensors[name].nbytes for name in first.values()),
        )

    async def write(self, folder: Path, weights: Weights) -> None:
        """Write weights into a folder as safetensors files.

        A tensor with several names is written once. Everybody who may read the folder may read the
        files. When this has ended, also by a cancellation, the weights are not read any more and
        nothing more is written.

        Args:
            folder: An existing folder.
            weights: All weights of the model.

        Raises:
            ValueError: If names or shapes differ from the model's.
            OSError: If the weights can't be written.
        """
        cancelled = threading.Event()
        writing = asyncio.ensure_future(
            asyncio.to_thread(self._write, folder, weights, cancelled.is_set)
        )
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # A thread can't be cancelled: it sees the event before its next tensor.
            cancelled.set()
            while not writing.done():
                with suppress(asyncio.CancelledError):  # a second cancellation
                    await asyncio.wait([writing])
            raise

    def _write(self, folder: Path, weights: Weights, cancelled: Callable[[], bool]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        for number, shard in enumerate(_shards(self.checked(weights), cancelled)):
            file = folder / f"weights-{number:05}.safetensors"
            try:
                save_file(shard, file)
            except SafetensorError as error:  # for example on a full disk
                raise OSError(f"the weights can't be written as {file}: {error}") from error
            file.chmod(0o644)  # `save_file` allows the owner alone, but servers may be other users

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


@contextmanager
def passing_folder(size: int) -> Iterator[Path]:
    """A folder for files that another process reads meanwhile; it is removed at the end.

    The folder lies in memory if there is room, else on disk. This process holds a lock on it, so
    that `remove_abandoned` knows whether the owner is still alive. The lock also works where
    containers share that memory but have process numbers of their own.

    Args:
        size: The expected size of the files in bytes.
    """
    import fcntl

    room = shutil.disk_usage(_MEMORY).free if os.path.isdir(_MEMORY) else 0
    made = Path(tempfile.mkdtemp(prefix="retool-", dir=_MEMORY if room > size else None))
    lock = os.open(made, os.O_RDONLY)
    try:
        with suppress(OSError):  # on a file system without locks nothing is ever removed
            fcntl.flock(lock, fcntl.LOCK_EX)
        # The folder gets this name only when it is locked.
        folder = made.rename(made.with_name(_PREFIX + made.name.removeprefix("retool-")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the folders of `passing_folder` whose processes were killed."""
    import fcntl

    for parent in {_MEMORY, tempfile.gettempdir()}:
        for folder in Path(parent).glob(f"{_PREFIX}*"):
            with suppress(OSError):  # another user's folder, or just removed
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if it is in use
                    shutil.rmtree(folder)
                finally:
                    os.close(lock)


class WeightFiles:
    """Weights in a folder for other processes: the latest, and older weights while they are read.

    Args:
        folder: The parent of the weights' folders, created if missing. `None`: nothing can be
            written.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder).absolute()
        self._inventory: Inventory | None = None
        self._written: set[str] = set()
        self._kept = ""
        self._readers: Counter[str] = Counter()

    async def write(self, name: str, weights: Weights, model: str) -> str:
        """Write weights into a new folder.

        Args:
            name: The name of the new folder.
            weights: All weights of the model.
            model: The folder of a checkpoint or a Hub id, whose configuration tells the names and
                shapes of the weights.

        Returns:
            The path of the new folder.

        Raises:
            ValueError: If there is no parent folder, or names or shapes differ from the model's.
            OSError: If the weights can't be written, or the configuration is not found.
        """
        if self._folder is None:
            raise ValueError(
                "tensors reach servers as files: make the policy with weights_folder, a folder at "
                "the same path on every server's machine; or save a checkpoint that the servers "
                "can read, and give its folder"
            )
        if self._inventory is None:
            try:
                self._inventory = await asyncio.to_thread(Inventory.of, model)
            except OSError as error:
                raise OSError(
                    f"the model's configuration, which tells its tensors, was not found at "
                    f"{model!r}, its path on the servers: make it available here under that path: "
                    f"{error}"
                ) from error
        path = self._folder / name
        path.mkdir(parents=True)
        try:
            await self._inventory.write(path, weights)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        self._written.add(str(path))
        return str(path)

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

    def _remove(self) -> None:
        for path in self._written - {self._kept} - set(+self._readers):
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.exists(path):  # otherwise the next call tries again
                self._written.discard(path)


def _shards(
    weights: Iterable[tuple[str, torch.Tensor]], cancelled: Callable[[], bool]
) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in weights:
        if cancelled():
            raise InterruptedError("the update was cancelled while its weights were written")
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard
