"""Replay: advantages and losses of recorded rollouts, by the functions of another algorithm.

    python -m agents replay runs/grpo --algorithm rloo clip_high=0.3

The rollouts of a step go through the algorithm's own trainer once more. A stand-in for the model
returns the recorded log-probs of the trainer's first pass, so that no weights are needed and
nothing is trained. Reward, bonus, advantages, corrections and loss are the algorithm's own.

A file of transcripts has the batches in their order, and in a batch the rollouts of a problem side
by side, as the trainer had them. Not on record, and so left out, are: the reference's log-probs
(the KL term), entropies (the entropy bonus), a critic's values, and the way in which TRL shuffled
the rows of a batch into micro batches.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, override

import torch
from datasets import Dataset

from agents import grpo
from agents.base.config import read_config
from agents.base.objective import Objective, objective_of
from agents.base.records import read_episodes, read_records
from agents.base.registry import load_algorithm, section_of
from agents.base.settings import SettingsError, build_settings, field_names
from agents.models.tiny import make_model
from agents.rewards import reward_functions
from retool_env.integrations.trl import EngineGRPOTrainer
from retool_env.key_values import merge, parse_settings
from retool_env.metrics.tables import markdown
from retool_env.rotation import open_names
from retool_env.task import make_rules
from retool_env.training.rows import training_rows
from retool_env.transcript import Transcript

KEPT = (
    *("name", "env", "seed", "model", "steps", "prompts", "rollouts", "micro_batch", "tokens"),
    *("temperature", "mask_void", "mask_overlong", "learning_rate"),
    "allow_high_learning_rate",
)
"""The settings that another algorithm takes over from the run: they describe its batches. All other
settings are the algorithm's defaults, unless the command names them."""

ROLLOUTS = "transcripts.jsonl"
"""The file of the rollouts of a run's first process."""

WITHOUT = {
    "ppo": "its advantages need the critic's values, which are not on record",
    "sft": "it learns from traces, without advantages",
    "rft": "it learns from chosen episodes, without advantages",
    "coldstart": "it learns from traces, without advantages",
}
"""The algorithms that no record of rollouts suffices for, with the reason."""

NOT_ON_RECORD = {
    "steps_per_generation": "which rollouts an optimizer step trained on",
    "generation_batch_size": "which rollouts an optimizer step trained on",
    "num_iterations": "the log-probs of later passes",
    "top_entropy_quantile": "the entropies of tokens",
}
"""The settings of `trl` that no record suffices for, with the missing part."""

COMPARED = ("loss", "policy_loss", "reward")
"""The figures of a step that must equal the figures in `metrics.jsonl`."""

IN_ONE_PASS = ("clip_ratio/region_mean", "cispo_clip_ratio")
"""Figures that are averaged over micro batches. They equal the recorded figures only if a step has
one micro batch, since TRL's way of filling several is not on record. So does the loss `bnpo`."""

_SIZE = {
    **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    **{"num_attention_heads": 1, "num_key_value_heads": 1},
}
"""The size of the stand-in model, which computes nothing."""


@dataclass(frozen=True)
class Batch:
    """The rollouts of a generation batch, of all processes."""

    version: int
    """The optimizer step at which the batch was sampled, from 0."""
    transcripts: list[Transcript]
    """The rollouts. The rollouts of a problem stand side by side."""


def batches(folder: Path, settings: Any, processes: int) -> Iterator[Batch]:
    """Yields the recorded batches of a run in their order.

    Args:
        folder: The run's folder.
        settings: The run's settings.
        processes: The number of processes of the run.

    Raises:
        SettingsError: If a record is damaged or missing, a batch is not made of whole groups, or it
            lacks the trainer's log-probs.
    """
    others = {f"transcripts-{rank}.jsonl" for rank in range(1, processes)}
    if folder.is_dir():  # the number of processes may have changed
        others |= open_names(folder) - {ROLLOUTS}
    names = [ROLLOUTS, *sorted(others, key=lambda name: (len(name), name))]
    files = [read_episodes(folder / name, "replay another run", True) for name in names]
    merged = heapq.merge(*files, key=_version)
    for version, transcripts in itertools.groupby(merged, key=_version):
        if version < 0:
            raise SettingsError(
                f"{folder}: its rollouts name no common step, so batches can't be recovered"
            )
        yield _checked(folder, settings, Batch(version, list(transcripts)))


def _version(transcript: Transcript) -> int:
    return -1 if transcript.trained_version is None else transcript.trained_version


def _checked(folder: Path, settings: Any, batch: Batch) -> Batch:
    where = f"{folder}, step {batch.version}"
    size = settings.rollouts
    groups = [
        {transcript.problem.id for transcript in some}
        for some in itertools.batched(batch.transcripts, size)
    ]
    if len(batch.transcripts) % size or any(len(names) > 1 for names in groups):
        raise SettingsError(
            f"{where}: its {len(batch.transcripts)} rollouts are not whole groups of "
            f"rollouts={size}, side by side, so the groups can't be recovered"
        )
    return batch


class RecordedTrainer(EngineGRPOTrainer):
    """A trainer whose model returns recorded log-probs.

    Args:
        objective: The algorithm's objective.
        folder: A folder for files of the trainer, which writes none.
        episodes: The number of episodes of a batch.
    """

    def __init__(self, objective: Objective, folder: Path, episodes: int) -> None:
        settings = objective.settings
        rules = make_rules(**settings.env)
        if rules.max_tokens is None:
            raise SettingsError("env: set max_tokens, the token budget of a response")
        # A budget of tokens gives the same loss as one pass.
        size = episodes if settings.tokens else settings.micro_batch
        passes, rest = divmod(episodes, size)
        if rest:  # of a run of several processes, or with other settings
            passes, size = 1, episodes
        budget, arguments = rules.max_tokens, objective.arguments
        config = grpo.grpo_config(settings, folder, budget, size, passes, arguments)
        model, tokenizer = make_model(0, **_SIZE)
        super().__init__(
            model=model,
            reward_funcs=reward_functions(objective.bonus, rules.max_tokens),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["?"] * episodes}),
            processing_class=tokenizer,
            rollout_func=self._rows,
            advantages=objective.advantages,
            normalise=objective.normalise,
            correction=settings.correction,
            correction_cap=settings.correction_cap,
            correction_bounds=(settings.correction_low, settings.correction_high),
        )
        self._masks = settings.mask_void, settings.mask_overlong
        self._batch: list[Transcript] = []
        self._logps: list[list[float]] = []
        self._part = slice(None)

    def _rows(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        rows = training_rows(self._batch, self.eos_token_ids, *self._masks)
        self._logps = [_trained(t, m) for t, m in zip(self._batch, rows["env_mask"], strict=True)]
        return {**rows, "untrained": [[] for _ in prompts]}

    @override
    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *_: Any,
        **__: Any,
    ) -> Any:
        logps = torch.zeros(len(input_ids), logits_to_keep)
        for row, numbers in zip(logps, self._logps[self._part], strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        self._trained_logps = logps
        return logps, torch.zeros_like(logps), None

    def replay(self, batch: Batch) -> dict[str, float]:
        """The figures of the optimizer step that trained on a batch, by its first pass.

        Args:
            batch: The batch.

        Returns:
            `loss`; TRL's figures; `advantage`, the mean over episodes of the absolute advantage;
            `no_signal`, the share of groups in which every advantage is 0.
        """
        self._batch = batch.transcripts
        self._metrics["train"].clear()
        self.model.train()
        self._part = slice(None)
        rows = self._generate_and_score_completions(
            [{"prompt": transcript.problem.id} for transcript in batch.transcripts]
        )
        size = self.args.per_device_train_batch_size
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        loss = 0.0
        for first in range(0, len(batch.transcripts), size):
            self._part = slice(first, first + size)
            count = len(batch.transcripts)
            part = {name: _rows_of(value, count, self._part) for name, value in rows.items()}
            with torch.no_grad():
                loss += self._compute_loss(self.model, part).item()
        figures = {name: sum(v) / len(v) for name, v in self._metrics["train"].items() if v}
        return {**figures, "loss": loss, **self._of_advantages(rows)}

    def _of_advantages(self, rows: Mapping[str, Any]) -> dict[str, float]:
        mask = (rows["completion_mask"] * rows["tool_mask"]).bool()
        advantages = rows["advantages"].abs()
        if advantages.dim() == 2:
            advantages = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        groups = advantages.view(-1, self.num_generations)
        silent = (groups == 0).all(1).float().mean().item()
        return {"advantage": advantages.mean().item(), "no_signal": silent}


def _rows_of(value: Any, count: int, part: slice) -> Any:
    """The rows of a part of a batch; values that are not one for each row stay whole."""
    rows = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == count
    return value[part] if rows else value


def _trained(transcript: Transcript, mask: Sequence[int]) -> list[float]:
    """The trainer's log-probs of a row, 0 at tokens that it does not train on."""
    if not any(mask):
        return [0.0] * len(mask)
    logps: list[float] = []
    for span in transcript.response:
        if span.author == "model" and span.trained_logprobs is None:
            raise SettingsError(
                f"an episode of {transcript.problem.id} has no log-probs of the trainer "
                "(trained_logprobs), so no loss can be computed anew"
            )
        logps += span.trained_logprobs or (0.0,) * len(span.token_ids or ())
    return logps


def main(argv: Sequence[str]) -> int:
    """`python -m agents replay RUN --algorithm NAME`.

    Args:
        argv: The arguments after `replay`.

    Returns:
        The exit status: 1 if the figures of the run's own algorithm differ from the recorded ones.

    Raises:
        SettingsError: If a setting is wrong, or the record does not suffice.
    """
    parser = argparse.ArgumentParser(
        prog="python -m agents replay",
        description="Advantages and losses of a run's recorded rollouts by another algorithm.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the folder of a training run")
    parser.add_argument("--algorithm", required=True, help="the algorithm, as for a training")
    parser.add_argument(
        "--trained-by", help="the algorithm that trained the run, if its record does not name it"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="its settings")
    arguments = parser.parse_intermixed_args(argv)
    config = _config(arguments.run)
    recorded: dict[str, Any] = config["settings"]
    name = arguments.trained_by or config.get("algorithm")
    objectives: dict[str, Objective] = {}
    own = f"{name} (run)"
    if name is None:
        print("the record does not name the run's algorithm: --trained-by NAME compares with it")
    elif reason := WITHOUT.get(name):
        print(f"the losses of {name}, which trained the run, are not computed anew: {reason}")
    else:
        objectives[own] = _objective(name, recorded)
    kept = {key: value for key, value in recorded.items() if key in KEPT}
    changed = parse_settings(arguments.settings)
    other = section_of(arguments.algorithm, load_algorithm(arguments.algorithm))
    objectives[other] = _objective(arguments.algorithm, merge(kept, changed))
    settings = next(iter(objectives.values())).settings
    processes = config.get("processes", 1)
    steps = _replayed(arguments.run, objectives, settings, processes)
    logged = {record["step"]: record for record in read_records(arguments.run / "metrics.jsonl")}
    print(_table(steps, list(objectives)))
    if own not in objectives:
        return 0
    if recorded.get("kl"):
        print("\nthe KL term is left out, so losses are not compared with metrics.jsonl")
        return 0
    episodes = settings.prompts * settings.rollouts
    whole = bool(settings.tokens) or episodes == settings.micro_batch * processes
    keys: tuple[str, ...] = (*COMPARED, *IN_ONE_PASS) if whole else COMPARED
    if settings.loss == "bnpo" and not whole:
        keys = ("reward",)
    return _compared({n: figures[own] for n, figures in steps.items()}, logged, keys)


def _config(folder: Path) -> dict[str, Any]:
    """The settings of a training run with rollouts."""
    if not (folder / "config.json").exists():
        raise SettingsError(f"{folder} is not the folder of a training run: name such a folder")
    config = read_config(folder)
    if not (folder / ROLLOUTS).exists():
        raise SettingsError(f"{folder} has no recorded rollouts ({ROLLOUTS}): replay a run of RL")
    return config


def _objective(name: str, values: Mapping[str, Any]) -> Objective:
    """The objective of an algorithm with these settings, without a KL term."""
    if reason := WITHOUT.get(name):
        raise SettingsError(f"{name} can't be replayed: {reason}")
    algorithm = load_algorithm(name)
    if not issubclass(algorithm.Settings, grpo.Settings):
        raise SettingsError(
            f"{name} can't be replayed: its Settings don't derive from grpo.Settings, so its loss "
            "is not GRPO's with other parts"
        )
    known = {key: value for key, value in values.items() if key in field_names(algorithm.Settings)}
    if unknown := sorted(set(values) - set(known) - set(KEPT)):
        build_settings(algorithm.Settings, {key: values[key] for key in unknown})  # its error
    alone = {"kl": 0.0, "report_to": "none", "dtype": "float32", "lora_rank": 0}
    settings = build_settings(algorithm.Settings, {**known, **alone})
    for key in settings.trl:
        if missing := NOT_ON_RECORD.get(key):
            raise SettingsError(
                f"{name} with trl.{key} can't be replayed: not on record: {missing}"
            )
    return objective_of(algorithm, settings)


def _replayed(
    folder: Path, objectives: Mapping[str, Objective], settings: Any, processes: int
) -> dict[int, dict[str, dict[str, float]]]:
    """The figures of each recorded step, by each algorithm."""
    episodes = settings.prompts * settings.rollouts
    steps = {}
    with tempfile.TemporaryDirectory() as scratch:
        trainers = {
            name: RecordedTrainer(objective, Path(scratch), episodes)
            for name, objective in objectives.items()
        }
        for batch in batches(folder, settings, processes):
            if len(batch.transcripts) != episodes:
                print(
                    f"step {batch.version + 1} is left out: {len(batch.transcripts)} of "
                    f"{episodes} rollouts are on record"
                )
                continue
            steps[batch.version + 1] = {
                name: trainer.replay(batch) for name, trainer in trainers.items()
            }
    if not steps:
        raise SettingsError(f"{folder} holds no whole batch of rollouts: set transcripts_every=1")
    return steps


_SHOWN = {
    "loss": "loss",
    "clipped": "clipped",
    "advantage": "advantage",
    "no_signal": "no signal",
}


def _table(steps: Mapping[int, Mapping[str, Mapping[str, float]]], names: Sequence[str]) -> str:
    """A row for each step, with the figures of each algorithm."""
    head = [f"{title}, {name}" for title in _SHOWN.values() for name in names]
    cells = [["step", *head]]
    for step, figures in steps.items():
        values = [_value(figures[name], key) for key in _SHOWN for name in names]
        cells.append([str(step), *values])
    return markdown(cells)


def _value(figures: Mapping[str, float], key: str) -> str:
    clipped = figures.get("clip_ratio/region_mean", figures.get("cispo_clip_ratio"))
    value = clipped if key == "clipped" else figures[key]
    return "–" if value is None else f"{value:.4g}"


def _compared(
    steps: Mapping[int, Mapping[str, float]],
    logged: Mapping[int, Mapping[str, Any]],
    keys: Sequence[str],
) -> int:
    """Says how far the figures of the run's own algorithm are from the recorded ones.

    With an entropy bonus, the record's `policy_loss` is the loss without the bonus.
    """
    most: dict[str, float] = {}
    for step, figures in steps.items():
        record = logged.get(step, {})
        for key in keys:
            if key in record and key in figures and not (key == "loss" and "policy_loss" in record):
                distance = abs(record[key] - figures[key])
                most[key] = max(most.get(key, 0.0), distance)
    if not most:
        print("\nmetrics.jsonl has no figure of these steps to compare with")
        return 0
    words = ", ".join(f"{key} {distance:.2g}" for key, distance in most.items())
    print(f"\nlargest distance from metrics.jsonl: {words}")
    if max(most.values()) <= TOLERANCE:
        return 0
    print("the recomputed figures are not the recorded ones")
    return 1


TOLERANCE = 1e-3
"""The largest distance between a recomputed and a recorded figure that counts as rounding."""
