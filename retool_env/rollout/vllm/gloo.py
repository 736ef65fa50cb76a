"""A back end of vLLM's weight transfer over gloo: servers and trainer need no GPU.

It has the protocol of vLLM's back end `nccl`, whose classes it inherits; only the group and the
broadcasts differ. A broadcast ends with an error after a while without a peer, which NCCL lacks.
vLLM's factory gets both classes when `retool_env.rollout.vllm.worker` is imported in a server, and
when this module is imported in a trainer.
"""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self, override

import torch
from torch.distributed import BroadcastOptions
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_common import worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
)

from retool_env.rollout.vllm.worker import pack_heads

SECONDS = 60.0
"""The seconds after which a broadcast without a peer is an error."""


class Group:
    """A gloo group of a trainer and the workers of its servers.

    Args:
        address: The address of the trainer.
        port: A free port of the trainer.
        rank: The number of this process; the trainer has 0.
        size: The number of the processes.
    """

    def __init__(self, address: str, port: int, rank: int, size: int) -> None:
        timeout = datetime.timedelta(seconds=SECONDS)
        self._group: Any = stateless_init_torch_distributed_process_group(
            address, port, rank, size, "gloo", timeout=timeout
        )

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send a tensor from the trainer to all workers.

        Args:
            tensor: A contiguous tensor on the CPU, of the same shape in every process.
        """
        options = BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        """Leave the group."""
        self._group.shutdown()


class GlooEngine(NCCLWeightTransferEngine):
    """The server's end of a transfer."""

    @override
    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        self.shutdown()
        config = self.parallel_config
        rank = config.data_parallel_index * config.world_size + config.rank
        self.model_update_group = Group(
            init_info.master_address,
            init_info.master_port,
            rank + init_info.rank_offset,
            init_info.world_size,
        )

    @override
    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    @override
    def receive_weights(self, update_info: Any) -> None:
        if self.model_update_group is None:
            raise RuntimeError("the group of this transfer was not made: update all servers again")
        columns = update_info.names, update_info.dtype_names, update_info.shapes
        for name, dtype, shape in zip(*columns, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            self.model_update_group.broadcast(tensor)
            self.model.load_weights([(name, tensor)])

    @override
    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        pack_heads(self.model)


@dataclass
class GlooTrainerInfo(NCCLTrainerInitInfo):
    """The address of a trainer and the size of its group."""

    backend: ClassVar[str] = "gloo"


class GlooTrainerEngine(NCCLTrainerWeightTransferEngine):
    """The trainer's end of a transfer."""

    init_info_cls = GlooTrainerInfo

    @classmethod
    @override
    def trainer_init(cls, init_info: GlooTrainerInfo, *, client: Any, source: Any = None) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        address, port = init_info.master_address, init_info.master_port
        workers = NCCLWeightTransferInitInfo(
            master_address=address,
            master_port=port,
            rank_offset=1,
            world_size=init_info.world_size,
        )
        with ThreadPoolExecutor(max_workers=1) as threads:
            joined = threads.submit(
                client.init_weight_transfer_engine, worker_init_payload(workers)
            )
            engine.model_update_group = Group(address, port, 0, init_info.world_size)
            joined.result()
        return engine

    @override
    def _broadcast(self, source: Any, meta: Any) -> None:
        for _, tensor in self._checked_iter(source, meta):
            self.model_update_group.broadcast(tensor.contiguous())


WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerEngine)
