"""TRL's `GRPOTrainer`, resumed inside a generation batch, and the transcripts of its batches.

Several optimizer steps may share a generation batch. TRL counts its passes from 0 at each start, so
that a resumed run would sample a new batch at once, and all later batches would begin at other
steps. Here the count goes on, the rows of a batch are shuffled by a seed of their own, and the
trainer takes the rest of the batch from the rollouts that were kept (`KeptBatches`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from retool_env.integrations.passes import PackedGRPOTrainer
from retool_env.integrations.rollouts import passes_a_batch
from retool_env.training.processes import together
from retool_env.training.rollouts import Rollouts
from retool_env.training.rows import with_trained_logprobs
from retool_env.transcript import Transcript

_log = logging.getLogger(__name__)


class ResumableGRPOTrainer(PackedGRPOTrainer):
    """TRL's trainer that goes on inside a generation batch; see `EngineGRPOTrainer`.

    Args:
        *args: Positional arguments of TRL's `GRPOTrainer`.
        on_trained: See `EngineGRPOTrainer`.
        **kwargs: Keyword arguments of TRL's `GRPOTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        on_trained: Callable[[int, list[Transcript]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.on_trained = on_trained
        self._untrained: list[Transcript] = []
        self._sampled_at = 0
        self._logps_of: dict[int, list[float] | None] = {}  # None: no token to train on
        self._resumed_from: str | None = None
        self.add_callback(_Borders(self))

    def go_on(self) -> None:
        """Count the passes from the beginning of the run. Called before the first pass."""
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        self._buffered_inputs = None

    @property
    def goes_on(self) -> bool:
        """Whether an earlier start of the run has trained on a part of the last batch."""
        rollouts = self.rollout_func
        return isinstance(rollouts, Rollouts) and rollouts.goes_on

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        begins = self._buffered_inputs is None or self._step % passes_a_batch(self) == 0
        if not (self.model.training and begins):
            return super()._prepare_inputs(generation_batch)
        number, rank = self._step // passes_a_batch(self), self.accelerator.process_index
        seed = np.random.SeedSequence((self.args.seed, number, rank)).generate_state(1, np.uint64)
        # TRL shuffles with the global generator. The resumed run must find the same order.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(int(seed[0] >> 1))
            inputs = super()._prepare_inputs(generation_batch)
        if self.goes_on and self._untrained:
            self._find_trained_rows()
        return inputs

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        metrics = {name: [*values] for name, values in self._metrics["train"].items()}
        seen = self.state.num_input_tokens_seen
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        if self.goes_on:  # the batch was counted when it was sampled
            self._metrics["train"].clear()
            self._metrics["train"].update(metrics)
            self.state.num_input_tokens_seen = seen
        if self.on_trained is not None:
            device = output["completion_mask"].device
            output["row"] = torch.arange(len(inputs), device=device)  # TRL shuffles rows
            self._untrained, self._logps_of = [row["transcript"] for row in inputs], {}
            self._sampled_at = self.state.global_step
            if self.goes_on:
                self._sampled_at = self._untrained[0].trained_version or 0
        return output

    def after_passes(self, inputs: dict[str, Any], logps: torch.Tensor) -> None:
        """Keep the log-probs; hand the transcripts over after the last pass of the batch.

        All processes see the last pass at the same time.

        Args:
            inputs: A micro batch, with the episodes of this process.
            logps: The trained model's log-probs of the completions, shape `(B, C)`.
        """
        if self.on_trained is None or not self._untrained:
            return
        trains = (inputs["completion_mask"] * inputs["tool_mask"]).any(dim=1).tolist()
        for row, kept, has in zip(inputs["row"].tolist(), logps.tolist(), trains, strict=True):
            self._logps_of.setdefault(row, kept if has else None)
        # Not once all log-probs are known: a batch that was sampled anew inside its passes never
        # sees some of its rows.
        if (self._step + 1) % passes_a_batch(self) == 0:
            self.hand_over()

    def hand_over(self) -> None:
        """Call `on_trained` with the batch's transcripts that it has not got yet.

        They have the log-probs of the passes so far. All processes must call it.
        """
        if not self._untrained or self.on_trained is None:
            return
        transcripts = [
            transcript if logps is None else with_trained_logprobs(transcript, logps)
            for row, transcript in enumerate(self._untrained)
            for logps in [self._logps_of.get(row)]
        ]
        self._untrained, self._logps_of = [], {}
        record = self.on_trained
        together(self.accelerator, lambda: record(self._sampled_at, transcripts))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial))
        folder /= f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        known = {row: logps for row, logps in self._logps_of.items() if logps is not None}
        for row, logps in known.items():
            del logps[len(self._untrained[row].completion_ids) :]  # of padding
        values = [logprob for logps in known.values() for logprob in logps]
        arrays = {
            "rows": np.array([*known], np.int32),
            "sizes": np.array([len(logps) for logps in known.values()], np.int32),
            "logprobs": np.array(values, np.float32),
        }

        def keep() -> None:
            if known:  # the training is inside a batch, and has used rows of this process
                save_file(arrays, self._trained_rows(folder))

        together(self.accelerator, keep)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from = checkpoint

    def _trained_rows(self, checkpoint: Path) -> Path:
        """The file of the log-probs of the rows that the steps before a checkpoint trained on."""
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        return checkpoint / f"trained-rows.{rank}-of-{count}.safetensors"

    def _find_trained_rows(self) -> None:
        """Read the log-probs of the rows that were trained on before the resumption."""
        path = self._trained_rows(Path(self._resumed_from or "."))
        if path.is_file():
            self._logps_of.update(_read_rows(path))
        steps = self.args.steps_per_generation
        assert steps is not None and self._buffered_inputs is not None  # TRL has set both
        done = min(self._step % passes_a_batch(self), steps)
        for part in self._buffered_inputs[:done]:
            for row in part["row"].tolist():
                self._logps_of.setdefault(row, None)


def _read_rows(path: Path) -> dict[int, list[float] | None]:
    """The log-probs by row; empty, with a warning, if the file is damaged: only records need it."""
    try:
        arrays = load_file(path)
        parts = np.split(arrays["logprobs"], np.cumsum(arrays["sizes"])[:-1])
        return {
            row: logps.tolist() for row, logps in zip(arrays["rows"].tolist(), parts, strict=True)
        }
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        _log.warning(
            "%s is damaged (%s): the transcripts of the steps before the resumption lack the "
            "trained model's log-probs",
            path,
            error,
        )
        return {}


class _Borders(TrainerCallback):
    """Tells the trainer of the beginning and the end of a training."""

    def __init__(self, trainer: ResumableGRPOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer, on all processes."""
        self._trainer.go_on()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand over the transcripts of a batch in the middle of which the training ended."""
        self._trainer.hand_over()
