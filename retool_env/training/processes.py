"""Work that all processes of a run do together, so that an error on one ends it on all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from retool_env.errors import RolloutsAbandoned as RolloutsAbandoned


def together[T](accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do work on every process; an error on one process ends the work on all.

    Without this, the other processes would wait for the failed process in their next collective.

    Raises:
        RuntimeError: If another process has an error.
        RolloutsAbandoned: If no process has an error, and a process abandoned its rollouts.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    abandoned = isinstance(error, RolloutsAbandoned)
    numbers = gathered(accelerator, error is not None and not abandoned, abandoned)
    if error is not None and not abandoned:
        raise error
    for rank, (failed, _) in enumerate(numbers):
        if failed:
            raise RuntimeError(f"process {rank} failed: read its error text for the reason")
    if any(left for _, left in numbers):
        raise RolloutsAbandoned("the rollouts were abandoned")
    return result


def gathered(accelerator: Accelerator, *numbers: float) -> list[list[float]]:
    """The numbers of every process, in the order of ranks. All processes must call it.

    Args:
        accelerator: The accelerator of the run.
        *numbers: The numbers of this process, equally many on each process.
    """
    if accelerator.num_processes == 1:
        return [list(map(float, numbers))]
    row = torch.tensor([numbers], dtype=torch.float32, device=accelerator.device)
    return accelerator.gather(row).tolist()
