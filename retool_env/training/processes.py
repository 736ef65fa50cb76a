"""What all processes of a run do together, so that none waits for one that has gone another way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from retool_env.errors import RolloutsAbandoned as RolloutsAbandoned


def together[T](accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do something on every process. An error on one is one on all, so that none waits for it.

    Raises:
        RuntimeError: If another process has an error.
        RolloutsAbandoned: If none has, and one abandoned its rollouts.
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
            raise RuntimeError(f"process {rank} failed; it says why")
    if any(left for _, left in numbers):
        raise RolloutsAbandoned("the rollouts were abandoned")
    return result


def gathered(accelerator: Accelerator, *numbers: float) -> list[list[float]]:
    """Every process's numbers, by its rank. All processes must call it."""
    if accelerator.num_processes == 1:
        return [list(map(float, numbers))]
    own = torch.tensor([numbers], dtype=torch.float32, device=accelerator.device)
    return accelerator.gather(own).tolist()
