"""Session: a training run from its settings to its trained model.

    with RolloutSession(settings, folder, resume) as run:
        if run.finished:
            return run.checkpoint
        ...                  # what else is to be checked; nothing is written so far
        run.begin("ppo")     # sandbox, folder, the point where an earlier start came to, board
        ...                  # the algorithm
        run.save(trainer)
    return run.checkpoint    # what was opened is closed, and the run is marked as finished

Whoever leaves the block by an error or a stop leaves a run that `--resume` goes on with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import PreTrainedModel, TrainerCallback

from agents.base.board import Bar, console
from agents.base.fields import ModelSettings, PolicySettings, RunSettings
from agents.base.model import export, load_model, save_checkpoint
from agents.base.reporting import Reporter, check_report_to
from agents.base.run import Run
from agents.base.sampler import check_engine, make_policy
from agents.base.selection import chosen_ids, only
from agents.base.settings import SettingsError, find_sandbox, find_task, task_of
from agents.base.sharding import processes
from agents.base.stopping import Stopping
from retool_env.execution import Sandbox
from retool_env.problem import ProblemSource
from retool_env.rollout import RolloutEngine
from retool_env.rollout.progress import Progress, shown
from retool_env.rules import Rules
from retool_env.training.rollouts import Rollouts


class Session[S: RunSettings](Run):
    """A run with its task, and all that is open while it lasts.

    Of a finished run nothing but its folder is there.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Go on where the run in that folder was, or start it if there is none.
        length: See `Run`.
        reached: See `Run`.

    Raises:
        SettingsError: If a setting names nothing there is, or the folder holds a run that can't go on
            like that.
    """

    rules: Rules
    """The environment's."""
    problems: ProblemSource
    """The environment's."""
    model: PreTrainedModel
    """The model that is trained, once it is loaded."""
    tokenizer: Any
    """The model's: one of transformers', which a `Tokenizer` is too, though its types are wider."""

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
        """What is closed at the end, the last first."""
        self.stopping = Stopping()
        self._was_finished = self.finished
        if self._was_finished:
            return
        self.rules, self.problems = find_task(settings.env)
        self.task = task_of(settings.env)
        if isinstance(settings, ModelSettings):
            check_report_to(settings.report_to)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.resources.__exit__(kind, error, trace)
        if kind is None and not self._was_finished:
            self.draw()
            self.finish()

    def open_sandbox(self) -> Sandbox | None:
        """The sandbox that the setting names, until the session ends; `None` without interpreter.

        Raises:
            SettingsError: If it names none.
            SandboxUnavailable: If it can't work here.
        """
        sandbox = find_sandbox(self.settings.sandbox, self.rules)
        if sandbox is not None:
            self.resources.callback(sandbox.close)
        return sandbox

    def open_reporter(self, folder: Path) -> Reporter:
        """What reports the figures of a loop of one's own, until the session ends.

        Args:
            folder: Where TensorBoard's files go.
        """
        settings: Any = self.settings
        values = dataclasses.asdict(settings)
        reporter = Reporter(settings.report_to, settings.name, folder, values)
        self.resources.callback(reporter.close)
        return reporter

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end a turn."""
        return self.rules.turn_protocol().stop

    def save(self, trainer: Any) -> None:
        """Save the trained model, which is what a run is for.

        Args:
            trainer: It has the model, and the accelerator that it is trained with.
        """
        save_checkpoint(trainer, self.tokenizer, self.checkpoint, self.stop_strings, self.task)

    def export(self, trainer: Any, step: int) -> None:
        """Keep the model as it is after a step, in a folder of its own; see `save`."""
        folder = self.exports / str(step)
        export(trainer, self.tokenizer, folder, self.stop_strings, self.task)


class RolloutSession[P: PolicySettings](Session[P]):
    """A session that samples episodes of problems, a batch a step, and learns from their rewards.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Go on where the run in that folder was, or start it if there is none.

    Raises:
        SettingsError: If a setting names nothing there is, or a prompt does not fit the model.
    """

    ids: list[str]
    """The problems of the whole run, in the order in which they are trained on."""
    point: str | None
    """The checkpoint that the run goes on from; `None` at its beginning."""
    bar: Bar

    def __init__(self, settings: P, folder: Path, resume: bool) -> None:
        count = processes().num_processes
        self._engine = check_engine(settings.engine, count, settings.sample_batch)
        super().__init__(settings, folder, resume, "steps")
        if self.finished:
            return
        self.model, self.tokenizer = load_model(settings.model, settings.dtype)
        drawn, *earlier = (steps * settings.prompts for steps in (settings.steps, *self.earlier))
        self.ids = chosen_ids(self.problems, drawn, settings.seed, settings.curriculum, earlier)
        check_prompts(self.ids, self.problems, self.rules, self.tokenizer, self.model)
        self.progress = Progress()

    def begin(self, what: str) -> None:
        """Open the sandbox, take the folder, find where an earlier start came to, show the board.

        Args:
            what: The board's title.

        Raises:
            SettingsError: If the setting `sandbox` names none, another process is at work in the
                folder, or a record in it is damaged.
            SandboxUnavailable: If the sandbox can't work here.
        """
        self._sandbox = self.open_sandbox()
        self.start()
        self.point = self.resume_point()
        title = what if self.rules.interpreter else f"{what}, text only"
        bar = Bar(title, self.settings.steps, live=self.progress, past=self.metrics())
        self.bar = self.resources.enter_context(bar)
        if self.main and not console.is_terminal:
            self.resources.enter_context(shown(self.progress, every=60.0))

    def make_rollouts[R: Rollouts](
        self,
        kind: Callable[..., R],
        trained: Any,
        device: torch.device | str,
        apart: bool,
        tokens_in_flight: int = 0,
        **options: Any,
    ) -> R:
        """What samples episodes with the setting `engine`, until the session ends.

        Args:
            kind: Makes it; see `Rollouts`.
            trained: The model that is trained, adapters and all.
            device: Where a model apart lies.
            apart: Whether the model is sampled from while it is trained, or is sharded.
            tokens_in_flight: See `RolloutEngine`; 0: no bound but the engine's own.
            **options: See `Rollouts`.

        Raises:
            SettingsError: If an argument of the engine is unknown or out of range.
            PolicyUnavailable: If no server can be reached.
        """
        settings, (name, arguments) = self.settings, self._engine
        policy = make_policy(
            name,
            arguments,
            trained,
            self.tokenizer,
            settings.model,
            settings.temperature,
            apart,
            device,
        )
        self.resources.enter_context(policy)
        rollouts = kind(
            RolloutEngine(
                policy,
                self.rules,
                self._sandbox,
                settings.in_flight,
                tokens_in_flight or None,
                progress=self.progress,
            ),
            # Of a curriculum's problems, also those that replace others.
            only(self.problems, self.ids) if settings.curriculum else self.problems,
            settings.seed,
            deadline=settings.deadline or None,
            mask_void=settings.mask_void,
            stopping=self.stopping.asked,
            **options,
        )
        self.resources.callback(rollouts.close)
        return rollouts


def check_prompts(
    ids: Iterable[str], problems: ProblemSource, rules: Rules, tokenizer: Any, model: Any
) -> None:
    """Check, before hours are spent, that every prompt leaves room for a response.

    Raises:
        SettingsError: Naming the first problem whose prompt does not; or if the tokenizer's chat
            template lacks what the protocol needs.
    """
    context = model.config.get_text_config().max_position_embeddings
    protocol = rules.turn_protocol()
    for problem_id in dict.fromkeys(ids):
        try:
            _, prompt = protocol.prompt(rules.prompt(problems.get(problem_id)), tokenizer)
        except ValueError as error:
            raise SettingsError(f"env.protocol={rules.protocol}: {error}") from error
        size = len(prompt or ())
        if size >= context:
            raise SettingsError(
                f"the prompt of {problem_id} has {size} tokens, the model's context {context}: "
                "take a shorter env.prompt_template, or leave such problems out"
            )


class Export(TrainerCallback):
    """Keeps the model along training.

    Args:
        trainer: The trainer that has the model.
        run: The run in whose folder the models are kept.
        every: Optimizer steps between two of them.
    """

    def __init__(self, trainer: Any, run: Session[Any], every: int) -> None:
        self._trainer, self._run, self._every = trainer, run, every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer, on all processes."""
        if state.global_step % self._every == 0:
            self._run.export(self._trainer, state.global_step)
