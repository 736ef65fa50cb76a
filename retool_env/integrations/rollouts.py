"""EngineRollouts: a `rollout_func` for TRL that samples with the rollout engine."""

from __future__ import annotations

from functools import partial
from typing import Any

from retool_env.training.rollouts import Rollouts, RolloutsAbandoned, Sampled
from retool_env.training.rows import ResampleBy
from retool_env.training.step import Step

__all__ = ["EngineRollouts", "ResampleBy", "RolloutsAbandoned", "Sampled"]


class EngineRollouts(Rollouts):
    """`Rollouts` as a `rollout_func`: each call is a step of TRL's trainer."""

    _origin: tuple[int, int] | None = None
    """Passes that the run had made at this start, and TRL's count of passes at that time."""

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """Collect one generation batch; see `Rollouts.collect`.

        Args:
            prompts: Ids of this process's problems, each repeated for its rollouts, side by side.
            trainer: The `GRPOTrainer` that asks for the batch.

        Returns:
            The batch's rows; see `Rollouts.collect`.
        """
        training, number = trainer.model.training, trainer.state.global_step
        batch, until, resumed = -1, None, False
        if training:
            # TRL counts its passes over micro batches anew from each start of a run;
            # `EngineGRPOTrainer` goes on counting.
            each, passes = trainer.args.gradient_accumulation_steps, passes_a_batch(trainer)
            if self._origin is None:
                self._origin = number * each, trainer._step
            taken = self._origin[0] + trainer._step - self._origin[1]
            batch = taken // passes
            until = -((taken // passes + 1) * passes // -each)
            resumed = trainer._step % passes != 0
        return self.collect(
            Step(
                number=number,
                batch=batch,
                prompts=prompts,
                group=trainer.num_generations if training else trainer.num_generations_eval,
                model=trainer.model,
                accelerator=trainer.accelerator,
                temperature=trainer.temperature,
                eos_token_ids=trainer.eos_token_ids,
                log=trainer._log_metric,
                training=training,
                until=until,
                resumed=resumed,
                coming=partial(self._coming, trainer),
            )
        )

    def _coming(self, trainer: Any, batch: int) -> list[str] | None:
        """The prompts of a later batch; `None` if the trainer will not ask for the batch."""
        assert self._origin is not None
        arguments, n, passes = trainer.args, trainer.num_generations, passes_a_batch(trainer)
        shift = self._origin[0] - self._origin[1]  # TRL's first batch need not begin at a border
        first = shift + (batch - shift // passes) * passes
        if first >= trainer.state.max_steps * arguments.gradient_accumulation_steps:
            return None
        size = arguments.generation_batch_size // n
        start = batch % (len(trainer.train_dataset) // size) * size
        ids = trainer.train_dataset[start : start + size]["prompt"]
        rank = trainer.accelerator.process_index
        rows = len(ids) * n // trainer.accelerator.num_processes
        return [name for name in ids for _ in range(n)][rank * rows : (rank + 1) * rows]


def passes_a_batch(trainer: Any) -> int:
    """The number of forward and backward passes that `trainer` makes with a generation batch."""
    return trainer.args.steps_per_generation * trainer.num_iterations
