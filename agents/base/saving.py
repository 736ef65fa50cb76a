"""Saving: the checkpoints for resuming, of which the newest complete one is always kept.

A checkpoint is complete once it has its seal (`records.SEAL`), which the first process writes last.
Until then the folder holds the mark `INCOMPLETE`, and older checkpoints stay. All files, and the
records of the steps before, are synced to the disk before the seal, and the seal before an older
checkpoint is deleted. So a crash or a power failure at any moment leaves the last complete
checkpoint.

With shards (FSDP2), the processes copy their shards to memory and write them while the training
continues, with `torch.distributed.checkpoint.async_save`. A save in flight ends before the next one
begins, and before the run ends.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from agents.base.disk import naming
from agents.base.records import INCOMPLETE, seal
from agents.base.sharding import processes
from retool_env.durable import sync, sync_files, sync_tree
from retool_env.rollout.weights import check_finite
from retool_env.training.processes import WAIT, everywhere, phase


class Saving:
    """Writes the checkpoints of a run. All processes call its methods together.

    Args:
        folder: The folder of the run's checkpoints.
        keep: The number of complete checkpoints that are kept; `None`: all.
    """

    def __init__(self, folder: Path, keep: int | None = 1) -> None:
        self.folder = folder
        self.keep = keep
        self.step = 0
        """The step of the last complete checkpoint; 0 without one. Until `wait`, only the first
        process knows of the save in flight."""
        self.begun = 0
        """The step of the last checkpoint that was begun; 0 without one."""
        self._writes: list[Future[Any]] = []
        self._groups: list[Any] = []
        self._end: threading.Thread | None = None
        self._error: Exception | None = None
        self._warned = False

    def resume(self, step: int) -> None:
        """Take the step of the checkpoint from which the run continues; 0 at its beginning."""
        self.step = self.begun = step

    def check(self, model: Any, step: int) -> None:
        """Check after a step that the trained weights are finite, before they are saved.

        Args:
            model: The model.
            step: The number of the step.

        Raises:
            NotFinite: If a trained weight of this process is NaN or infinite.
        """
        trained = ((name, each) for name, each in model.named_parameters() if each.requires_grad)
        check_finite(trained, f"the training diverged at step {step}")

    def after_divergence(self) -> str:
        """The advice after a divergence: the last checkpoint, and the setting to change."""
        folder = self.folder / f"checkpoint-{self.step}"
        found = f"the last good checkpoint is {folder}" if self.step else "no checkpoint was saved"
        return f"{found}; start again with another name=... and a lower learning_rate"

    @contextlib.contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Save a checkpoint: the block writes its files, of which the shards are written later.

        Args:
            step: The number of optimizer steps before the checkpoint.

        Yields:
            The checkpoint's folder, `checkpoint-<step>`.

        Raises:
            RuntimeError: If this save or the one before failed on another process.
            Exception: The error of this save or the one before on this process.
        """
        self.wait()
        folder = self.folder / f"checkpoint-{step}"
        with phase("saving"):
            with self._agreed():
                if processes().is_main_process:
                    shutil.rmtree(folder, ignore_errors=True)  # a stop left it incomplete
                    folder.mkdir(parents=True)
                    (folder / INCOMPLETE).touch()
            with self._agreed(), self._written_later(), naming(folder):
                yield folder
                # Each process syncs what it wrote itself; shards are still being written.
                sync_files(folder)
                sync_files(self.folder.parent, "*.jsonl*")
        # All files are on the disk, except the shards.
        self.begun = step
        if processes().is_main_process:
            self._end = threading.Thread(
                target=self._complete, args=(folder, step, list(self._writes))
            )
            self._end.start()
        if not self._writes:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight.

        Raises:
            RuntimeError: If it failed on another process.
            Exception: The error on this process.
        """
        with phase("saving"), self._agreed():
            writes, self._writes = self._writes, []
            end, self._end = self._end, None
            if end is not None:
                end.join()
            for write in writes:
                if (fault := write.exception()) is not None:
                    raise _failure(fault)
            if (error := self._error) is not None:
                self._error = None
                raise error
        self.step = self.begun

    @contextlib.contextmanager
    def _agreed(self) -> Iterator[None]:
        """Raise an error in the block on all processes, so that none waits for the failed one."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = everywhere(error is not None)
        if error is not None:
            raise error
        if any(failed):
            raise RuntimeError(f"process {failed.index(True)} could not write its checkpoint")

    def _complete(self, folder: Path, step: int, writes: list[Future[Any]]) -> None:
        """Seal a checkpoint after its writes, and delete older ones; for the first process."""
        try:
            if any(write.exception() is not None for write in writes):
                return  # `wait` raises the error
            sync_tree(folder)
            (folder / INCOMPLETE).unlink()
            seal(folder)
            sync(self.folder.parent)
            self.step = step
            self._delete_older()
        except Exception as error:
            self._error = error

    def _delete_older(self) -> None:
        if self.keep is None:
            return
        found = {
            int(number): path
            for path in self.folder.glob("checkpoint-*")
            if (number := path.name.removeprefix("checkpoint-")).isdecimal()
            and int(number) <= self.step
        }
        complete = sorted(step for step in found if not (found[step] / INCOMPLETE).exists())
        for step in sorted(found.keys() - complete[-self.keep :]):
            try:
                shutil.rmtree(found[step])
            except OSError as error:  # the run may never need the room
                if not self._warned:
                    print(
                        f"warning: an older checkpoint can't be deleted ({error}): delete "
                        f"{found[step]} yourself. The run goes on",
                        file=sys.stderr,
                    )
                self._warned = True

    @contextlib.contextmanager
    def _written_later(self) -> Iterator[None]:
        """While the block runs, `torch.distributed.checkpoint.save` returns before it has written.

        accelerate calls it by this name for each sharded model and each sharded optimizer.
        """
        before = dcp.save
        dcp.save = self._save
        try:
            yield
        finally:
            dcp.save = before

    def _save(
        self, state_dict: dict[str, Any], *, storage_writer: Any, planner: Any = None
    ) -> None:
        number = len(self._writes)
        if number == len(self._groups):
            # The writers of one checkpoint work at the same time, so each has its own group.
            self._groups.append(distributed.new_group(backend="gloo", timeout=WAIT))
        # The storage writer's own copy would share the memory of tensors on the CPU.
        stager = DefaultStager(StagingOptions(False, False, False, False))
        write = dcp.async_save(
            state_dict,
            storage_writer=storage_writer,
            planner=planner,
            process_group=self._groups[number],
            async_stager=stager,
        )
        assert isinstance(write, Future)  # the copy was made above, not by another thread
        write.add_done_callback(lambda _: stager.close())
        self._writes.append(write)


def _failure(fault: BaseException) -> OSError:
    """The error of shards that could not be written."""
    text = str(fault)
    if isinstance(fault, CheckpointException):  # not an `Exception`, and with tracebacks
        failures = fault.failures.items()
        text = "; ".join(f"process {rank}: {error}" for rank, (error, _) in failures)
    return OSError(f"the checkpoint could not be written: {text}")
