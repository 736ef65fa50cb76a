"""Session: a training run from its settings to its trained model.

    with RolloutSession(settings, folder, resume) as run:
        if run.finished:
            return run.checkpoint
        ...                  # further checks; nothing is written so far
        run.begin("ppo")     # opens sandbox and folder, finds the checkpoint, shows the board
        ...                  # the algorithm
        run.save(trainer)
    return run.checkpoint    # the session closed its resources and marked the run as finished

If an error or a stop ends the block, `--resume` continues the run. From `start` to the end of the
block the session handles the signals that stop a run (`stopping`). A loop that samples by other
means than `make_rollouts` calls `run.stopping.check()` once a step.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, override

import torch
from transformers import PreTrainedModel, TrainerCallback

from agents.base.board import Bar, console
from agents.base.disk import check_disk, check_time, disk_need
from agents.base.fields import ExportType, ModelSettings, PolicySettings, RunSettings
from agents.base.held_out import HeldOut, Report, held_out_task
from agents.base.model import export, load_model, save_checkpoint
from agents.base.model_card import ModelCard
from agents.base.reporting import Reporter, check_report_to
from agents.base.resuming import needed_step
from agents.base.run import Run, is_dry
from agents.base.sampler import check_engine, check_for_training, make_policy, own_weights_folder
from agents.base.saving import Saving
from agents.base.selection import chosen_ids, subset
from agents.base.settings import SettingsError, find_sandbox, find_task, prefixed, task_of
from agents.base.sharding import launched, processes
from agents.base.status import Status
from agents.base.stopping import Stopped, Stopping
from agents.base.watch import Watch
from retool_env.checkpoint_task import TEMPERATURE, TOP_P, CheckpointTask
from retool_env.errors import NotFinite, RolloutsAbandoned
from retool_env.evaluation.progress import counted, on_stderr
from retool_env.execution import Sandbox
from retool_env.problem import ProblemList, ProblemSource
from retool_env.rollout import RolloutEngine
from retool_env.rollout.progress import Progress, shown
from retool_env.rules import Rules
from retool_env.training.kept_batches import KeptBatches
from retool_env.training.processes import phase
from retool_env.training.rollouts import Rollouts


class Session[S: RunSettings](Run):
    """A run with its task and its open resources.

    A session of a finished run has no task; only the paths of its folder can be used.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Continue the run in the folder, or start it if the folder holds no run.
        length: See `Run`.
        reached: See `Run`.

    Raises:
        SettingsError: If a setting is wrong, or the folder holds a run that can't be continued with
            these settings.
    """

    rules: Rules
    """The environment's rules."""
    problems: ProblemSource
    """The environment's problems."""
    model: PreTrainedModel
    """The trained model, once it is loaded."""
    tokenizer: Any
    """The model's tokenizer, of transformers. It also works as a `Tokenizer`."""

    def __init__(
        self,
        settings: S,
        folder: Path,
        resume: bool,
        length: str | None = None,
        reached: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(folder, settings, resume, length, reached)
        self.settings = settings
        self.resources = ExitStack()
        """The resources that the session closes at its end, the last opened first."""
        self.stopping = Stopping()
        self.saving = Saving(self.trainer)
        self.status = Status(folder)
        self.watch = Watch(
            self.stopping,
            refresh=lambda: self.status.refresh(self.saving.step or None),
            gone=lambda text: self.status.end("failed", error=text),
        )
        self.stopping.last_words = lambda number: self.status.end("stopped")
        self._was_finished = self.finished
        if self._was_finished:
            return
        rules, self.problems = find_task(settings.env)
        self.rules = rules.for_training()
        self.task = task_of(settings.env)
        if isinstance(settings, ModelSettings):
            check_report_to(settings.report_to)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        given, context = error, getattr(error, "__context__", None)
        told = launched() and isinstance(error, KeyboardInterrupt)
        if told and isinstance(context, RuntimeError):
            # The launcher stops this process after another one died, which also led to the error.
            error = context
        elif isinstance(error, RolloutsAbandoned):  # on all processes
            error = Stopped(self.stopping.number or signal.SIGTERM)
        try:
            self.resources.__exit__(type(error) if error else None, error, trace)
            if error is None and not self._was_finished:
                self.draw()
                self.finish()
        except BaseException as caught:
            error = error or caught
        try:
            with self.stopping.shielded():
                self._end(error)
        finally:
            self.stopping.__exit__()
        if error is not given:
            raise error

    @override
    def start(self) -> None:
        self.stopping.__enter__()  # the start completes files of records, which may take a while
        super().start()
        self.status.start()
        self.watch.start()

    def _end(self, error: BaseException | None) -> None:
        """Write how the run ended, and end the watch."""
        saved = self.saving.step or None if self.main else None
        if error is None:
            self.status.end("finished", saved)
        elif isinstance(error, KeyboardInterrupt):
            self.status.end("stopped", saved)
            if self.main and saved:
                print(f"\nthe checkpoint of step {saved} is complete", file=sys.stderr)
        else:
            if isinstance(error, NotFinite):
                error.add_note(self.saving.after_divergence())
            if isinstance(error, RuntimeError) and (report := self.watch.report()):
                error.add_note(report)
            text = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            ended = self.stopping.asked() and self.watch.stopped()  # the error is a consequence
            self.status.end("stopped" if ended else "failed", saved, None if ended else text)
        self.watch.close(error)

    @override
    def log(self, record: dict[str, Any]) -> None:
        super().log(record)
        self.status.step = record["step"]

    def open_sandbox(self) -> Sandbox | None:
        """Open the sandbox of the setting `sandbox`. The session closes it.

        Returns:
            The sandbox; `None` if the rules turn the interpreter off.

        Raises:
            SettingsError: If the setting is wrong.
            SandboxUnavailable: If the sandbox does not work on this machine.
        """
        sandbox = find_sandbox(self.settings.sandbox, self.rules)
        if sandbox is not None:
            self.resources.callback(sandbox.close)
        return sandbox

    def open_reporter(self, folder: Path) -> Reporter:
        """Open a reporter for a training loop without TRL. The session closes it.

        Args:
            folder: The folder of TensorBoard's files.
        """
        settings: Any = self.settings
        values = dataclasses.asdict(settings)
        reporter = Reporter(settings.report_to, settings.name, folder, values)
        self.resources.callback(reporter.close)
        return reporter

    @property
    def card(self) -> ModelCard:
        """The model card of each checkpoint."""
        algorithm = type(self.settings).__module__.rpartition(".")[2]
        return ModelCard(algorithm, dataclasses.asdict(self.settings), self.task, self.folder)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end a turn."""
        return self.rules.turn_protocol().stop

    @property
    def _of_models(self) -> tuple[tuple[str, ...], CheckpointTask, ExportType]:
        """The arguments that all saved models share."""
        settings: Any = self.settings
        return self.stop_strings, self.task, settings.export_dtype

    def check_disk(self) -> None:
        """Check that the run's checkpoints and models fit on the disk.

        All processes call this together, once the model is loaded.

        Raises:
            SettingsError: If one checkpoint and the last model do not fit.
        """

        def check() -> None:
            if self.main:
                need = disk_need(self.settings, self.model)
                check_disk(need, self.folder, show=is_dry())
                check_time(need)

        self._on_all(check)

    def save(self, trainer: Any) -> None:
        """Save the trained model, the result of the run, in `checkpoint`.

        Args:
            trainer: An object with the trained `model` and its `accelerator`.
        """
        with phase("saving"):
            save_checkpoint(trainer, self.tokenizer, self.checkpoint, *self._of_models)
        if self.main:
            self.card.save(self.checkpoint)
            self.card.save(self.folder / "adapter", whole=self.checkpoint)

    def export(self, trainer: Any, step: int) -> None:
        """Save the model after a step in a separate folder of `exports`.

        Args:
            trainer: See `save`.
            step: The number of the step.
        """
        with phase("saving"):
            folder = self.exports / str(step)
            export(trainer, self.tokenizer, folder, *self._of_models)
        if self.main:
            self.card.save(folder, step)
            self.card.save(self.exports / "adapter", step, whole=folder)


class RolloutSession[P: PolicySettings](Session[P]):
    """A session that samples a batch of episodes in each step and learns from their rewards.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Continue the run in the folder, or start it if the folder holds no run.

    Raises:
        SettingsError: If a setting is wrong, or a prompt does not fit the model.
    """

    ids: list[str]
    """The ids of the run's problems, in the order in which the run trains on them."""
    point: str | None
    """The folder of the checkpoint from which the run is resumed; `None` at its beginning."""
    bar: Bar
    """The progress board, after `begin`."""

    def __init__(self, settings: P, folder: Path, resume: bool) -> None:
        count = processes().num_processes
        self._engine = check_engine(settings.engine, count, settings.sample_batch)
        check_for_training(self._engine[1], settings.staleness)
        super().__init__(settings, folder, resume, "steps")
        if self.finished:
            return
        if 0 < settings.tokens < (self.rules.max_tokens or 0):
            raise SettingsError(
                f"tokens={settings.tokens} is below env.max_tokens={self.rules.max_tokens}, the "
                "longest response of one episode: raise tokens, or lower env.max_tokens"
            )
        self.model, self.tokenizer = load_model(settings.model, settings.dtype, settings.attention)
        drawn, *earlier = (steps * settings.prompts for steps in (settings.steps, *self.earlier))
        self.ids = chosen_ids(self.problems, drawn, settings.seed, settings.curriculum, earlier)
        check_prompts(self.ids, self.problems, self.rules, self.tokenizer, self.model)
        if (task := held_out_task(settings, self.rules)) is not None:
            known, names = ProblemList(task.problems), [problem.id for problem in task.problems]
            check_prompts(names, known, task.rules, self.tokenizer, self.model, "eval_env")
        self._held_out_task = task
        self.progress = Progress()

    def begin(self, title: str) -> None:
        """Open the sandbox, lock the folder, find the last checkpoint, and show the board.

        Args:
            title: The board's title.

        Raises:
            SettingsError: If the setting `sandbox` is wrong, another process uses the folder, or a
                record in the folder is damaged.
            SandboxUnavailable: If the sandbox does not work on this machine.
        """
        self.check_disk()
        self._sandbox = self.open_sandbox()
        self.start()
        self.point = self.resume_point()
        if not self.rules.interpreter:
            title += ", text only"
        bar = Bar(title, self.settings.steps, live=self.progress, past=self.metrics())
        self.bar = self.resources.enter_context(bar)
        if self.main and not console.is_terminal:
            self.resources.enter_context(shown(self.progress, every=60.0))
        self.stopping.check()

    def make_rollouts[R: Rollouts](
        self,
        kind: Callable[..., R],
        trained: Any,
        device: torch.device | str,
        sharded: bool,
    ) -> R:
        """Make the rollouts of the setting `engine`; the session closes them.

        Args:
            kind: The class of the rollouts; see `Rollouts`.
            trained: The model that is trained, including its adapters.
            device: The device of a separate copy of the model.
            sharded: Whether the trained model is sharded. Then the engine `transformers` samples
                with a separate copy of the model, as with `staleness` above 0.

        Raises:
            SettingsError: If an argument of the engine is unknown or out of range.
            PolicyUnavailable: If no server can be reached.
        """
        settings, (name, arguments) = self.settings, self._engine
        own = own_weights_folder(self, arguments)
        apart = sharded or settings.staleness > 0
        model, temperature = settings.model, settings.temperature
        policy = make_policy(name, own, trained, self.tokenizer, model, temperature, apart, device)
        self.resources.enter_context(policy)
        engine = RolloutEngine(
            policy,
            self.rules,
            self._sandbox,
            settings.in_flight,
            settings.tokens_in_flight or None,
            progress=self.progress,
        )
        kept = KeptBatches(self.batches, lambda: needed_step(self.trainer))
        if self.main:
            self.resources.callback(kept.delete_used)
        rollouts = kind(
            engine,
            # With a curriculum, problems that replace others must also be the curriculum's.
            subset(self.problems, self.ids) if settings.curriculum else self.problems,
            settings.seed,
            staleness=settings.staleness,
            deadline=settings.deadline or None,
            oversample=settings.oversample,
            resample=settings.resample,
            resample_by=settings.resample_by,
            mask_void=settings.mask_void,
            mask_overlong=settings.mask_overlong,
            stopping=self.stopping.asked,
            kept=kept,
        )
        self.resources.callback(rollouts.close)
        self.stopping.check()
        return rollouts

    def make_held_out(self, rollouts: Rollouts, report: Report) -> HeldOut:
        """Make the run's evaluations; without `eval_every` they do nothing.

        Args:
            rollouts: The rollouts, from `make_rollouts`.
            report: Reports an evaluation to trackers.
        """
        return HeldOut(
            self,
            self.settings,
            self._held_out_task,
            lambda step, episodes: rollouts.evaluate(step, episodes, TEMPERATURE, TOP_P),
            self._sandbox,
            self.bar,
            self.stopping,
            report,
        )


def check_prompts(
    ids: Iterable[str],
    problems: ProblemSource,
    rules: Rules,
    tokenizer: Any,
    model: Any,
    setting: str = "env",
) -> None:
    """Check before the training that every prompt leaves room for a response.

    Args:
        ids: The ids of the run's problems.
        problems: The environment's problems.
        rules: The environment's rules.
        tokenizer: The model's tokenizer.
        model: The model, whose configuration has the context length.
        setting: The name of the environment's setting, for error texts.

    Raises:
        SettingsError: If a prompt fills the model's context, or the tokenizer's chat template does
            not support the protocol. The message names the first such problem.
    """
    context = model.config.get_text_config().max_position_embeddings
    protocol = rules.turn_protocol()
    for problem_id in counted(dict.fromkeys(ids), "prompts are checked", on_stderr):
        with prefixed(f"{setting}.protocol={rules.protocol}"):
            _, prompt = protocol.prompt(rules.prompt(problems.get(problem_id)), tokenizer)
        if (size := len(prompt or ())) >= context:
            raise SettingsError(
                f"the prompt of {problem_id} has {size} tokens, and the model's context has "
                f"{context}: shorten {setting}.prompt_template, or leave such problems out"
            )


class Export(TrainerCallback):
    """Saves the model at intervals during training; see `Session.export`.

    Args:
        trainer: The trainer of the model.
        run: The run that keeps the models.
        every: The number of optimizer steps between two saved models.
    """

    def __init__(self, trainer: Any, run: Session[Any], every: int) -> None:
        self._trainer, self._run, self._every = trainer, run, every

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the model if its turn has come. All processes call this."""
        if state.global_step % self._every == 0:
            self._run.export(self._trainer, state.global_step)
