"""Weights: a model's tensors on their way to a policy, and the files in which they reach another process."""

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

_SHARD_BYTES = 2 * 2**30  # what is held in memory of an iterator's tensors, beside the files
_MEMORY = "/dev/shm"
_PREFIX = "retool-weights-"


@dataclass(frozen=True)
class Inventory:
    """The weights that a model has."""

    shapes: Mapping[str, torch.Size]
    """Of each, by name."""
    first_names: Mapping[str, str]
    """By name, the first name of the same tensor: an output layer tied to the embedding has the embedding's."""
    bytes: int
    """Their size in float32."""

    @classmethod
    def of(cls, model: str) -> Self:
        """That of a checkpoint's folder, or a Hub id, of which only the configuration is read.

        Raises:
            OSError: If there is none.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tensors = built.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            first.setdefault(id(tensor), name)
        return cls(
            {name: tensor.shape for name, tensor in tensors.items()},
            {name: first[id(tensor)] for name, tensor in tensors.items()},
            sum(tensors[name].nbytes for name in first.values()),
        )

    async def write(self, folder: Path, weights: Weights) -> None:
        """Write weights into a folder as safetensors, a tensor of several names once.

        Whoever may read the folder may read them. When this has ended, cancelled or not, nothing is read of the weights any
        more, or written into the folder.

        Raises:
            ValueError: If they are not those of the model, by name and shape.
            OSError: If they can't be written.
        """
        cancelled = threading.Event()
        writing = asyncio.ensure_future(
            asyncio.to_thread(self._write, folder, weights, cancelled.is_set)
        )
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # A thread can't be cancelled: it is told, and waited for until it comes to its next tensor.
            cancelled.set()
            while not writing.done():
                with suppress(asyncio.CancelledError):  # once more
                    await asyncio.wait([writing])
            raise

    def _write(self, folder: Path, weights: Weights, cancelled: Callable[[], bool]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        for number, shard in enumerate(_shards(self._checked(weights, cancelled))):
            file = folder / f"weights-{number:05}.safetensors"
            try:
                save_file(shard, file)  # for its owner alone, who need not be the reader's
            except SafetensorError as error:  # a full disk's, say
                raise OSError(f"the weights can't be written as {file}: {error}") from error
            file.chmod(0o644)

    def _checked(
        self, weights: Weights, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        missing = dict.fromkeys(self.first_names.values())
        for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
            if cancelled():
                raise InterruptedError("whoever wanted the weights written has left")
            if name not in self.shapes:
                raise ValueError(
                    f"the model has no weight {name!r}; adapters must be merged, and wrappers' prefixes taken off"
                )
            if tensor.shape != self.shapes[name]:
                raise ValueError(
                    f"{name!r} has the shape {tuple(tensor.shape)}, and in the model {tuple(self.shapes[name])}"
                )
            first = self.first_names[name]
            if first in missing:
                del missing[first]
                yield first, tensor.detach().cpu().contiguous()
        if missing:
            raise ValueError(
                f"{len(missing)} of the model's weights are missing, {next(iter(missing))!r} say"
            )


@contextmanager
def passing_folder(size: int) -> Iterator[Path]:
    """A folder for files of so many bytes that another process reads meanwhile: in memory where there is room, else on disk.

    It is locked by this process, so that `remove_abandoned` knows whether anybody is left who would remove it: also where
    containers share that memory, and each counts its processes for itself.
    """
    import fcntl

    room = shutil.disk_usage(_MEMORY).free if os.path.isdir(_MEMORY) else 0
    made = Path(tempfile.mkdtemp(prefix="retool-", dir=_MEMORY if room > size else None))
    lock = os.open(made, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nothing is removed there
            fcntl.flock(lock, fcntl.LOCK_EX)
        # It has this name only when it is locked.
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

    for place in {_MEMORY, tempfile.gettempdir()}:
        for folder in Path(place).glob(f"{_PREFIX}*"):
            with suppress(OSError):  # another user's, or just gone
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where it is in use
                    shutil.rmtree(folder)
                finally:
                    os.close(lock)


class WeightFiles:
    """Weights in a folder where other processes read them: the latest, and older ones while they are read.

    Args:
        folder: It is made where it is missing. `None`: there is none, and nothing can be written.
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
            name: The new folder's.
            weights: All of the model's.
            model: The checkpoint's folder, or Hub id, whose configuration says which those are.

        Returns:
            The new folder's path.

        Raises:
            ValueError: If there is no folder, or the weights are not those of the model, by name and shape.
            OSError: If they can't be written, or there is no configuration.
        """
        if self._folder is None:
            raise ValueError(
                "tensors reach servers as files: make the policy with weights_folder, a folder that is at the same path on "
                "every server's machine; or save a checkpoint that they can read, and give its folder"
            )
        if self._inventory is None:
            try:
                self._inventory = await asyncio.to_thread(Inventory.of, model)
            except OSError as error:
                raise OSError(
                    f"which tensors the model has, its configuration says; there is none here at {model!r}, where the "
                    f"servers have it: {error}"
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
        """Keep this folder, and remove the others, unless they are being read."""
        self._kept = path
        self._remove()

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Keep a folder meanwhile."""
        self._readers[path] += 1
        try:
            yield
        finally:
            self._readers[path] -= 1
            self._remove()

    def _remove(self) -> None:
        for path in self._written - {self._kept} - set(+self._readers):
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.exists(path):  # else again, the next time
                self._written.discard(path)


def _shards(pairs: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in pairs:
        shard[name] = tensor
        size += tensor.nbytes
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard
