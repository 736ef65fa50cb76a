"""The main job: a small model learns from rewards alone to use the interpreter.

It compares two arms with the same budget: with the interpreter, and text only. In both arms a cold
start is followed by GRPO, and the model is evaluated on held-out problems before and after GRPO.
Everything lies in one run folder; its `stages/` holds a run folder for each stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, override

from agents import grpo, sft
from agents.base.board import Bar, console
from agents.base.curves import write_curves
from agents.base.fields import ModelSettings
from agents.base.presets import override_env
from agents.base.records import build, intact, read_object, read_records, write_atomically
from agents.base.session import Session
from agents.base.settings import build_settings, find_sandbox, find_task, prefixed, setting, stage
from retool_env.checkpoint_task import TEMPERATURE, TOP_P
from retool_env.errors import RolloutsAbandoned
from retool_env.evaluation.run import evaluate
from retool_env.metrics.summary import Summary
from retool_env.metrics.tables import table, tool_table
from retool_env.rollout.transformers.policy import load_policy
from retool_env.task import make_rules
from retool_env.transcript import write_transcripts

ONE_PROCESS = True
"""Whether the algorithm must run in one process: the command refuses several."""

ARMS = {"interpreter": True, "text only": False}
"""The arms of the comparison, and whether they have an interpreter."""


@dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of the main job."""

    name: str = "tiny"
    env: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str = setting("tiny", "the cold starts' model: a folder, a Hub id, or `tiny`")
    sft: dict[str, Any] = stage("settings of the cold starts (sft.epochs=2)", ())
    grpo: dict[str, Any] = stage(
        "settings of the reinforcement learning (grpo.steps=20)", ("model",)
    )
    problems: int = setting(200, "held-out problems")
    k: int = setting(4, "episodes a problem")


class _Job(Session[Settings]):
    """The session of the main job, which trains and evaluates in stages."""

    @override
    def draw(self) -> None:
        """Leave the picture as it is: `train` draws the curves of both arms."""


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the stages that have not been run yet, and show the table.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The run's folder.

    Raises:
        Stopped: If a signal stopped the run.
    """
    with _Job(settings, folder, resume) as run:
        check_stages(settings)
        run.start()
        stages = folder / "stages"
        curves: dict[str, list[dict[str, Any]]] = {}
        rows: dict[str, Summary] = {}
        started = time.monotonic()
        for arm, interpreter in ARMS.items():
            slug = arm.replace(" ", "-")
            env = {**settings.env, "interpreter": interpreter}
            run.stopping.check()
            console.rule(f"{arm}: cold start")
            stage = stage_settings(sft, settings, f"{slug}-sft", env, model=first_model(settings))
            cold = sft.train(stage, stages / f"{slug}-sft", True)
            rows[f"{arm}, cold start"] = _evaluate(settings, run, f"{arm}, cold start", env, cold)
            run.stopping.check()
            console.rule(f"{arm}: reinforcement learning")
            stage = stage_settings(grpo, settings, f"{slug}-grpo", env, model=str(cold))
            trained = grpo.train(stage, stages / f"{slug}-grpo", True)
            rows[f"{arm}, after RL"] = _evaluate(settings, run, f"{arm}, after RL", env, trained)
            curves[arm] = read_records(stages / f"{slug}-grpo" / "metrics.jsonl")
            write_curves(curves, folder / "curves.png")
        _link(folder)
        write_atomically(folder / "table.md", report(rows, settings) + "\n")
        console.rule("result")
        print(report(rows, settings))
        print(
            f"\n{time.monotonic() - started:.0f} s in this start; picture: {folder / 'curves.png'}"
        )
    return folder


def report(rows: dict[str, Summary], settings: Settings) -> str:
    """The final table, and the points of accuracy that RL gained in each arm.

    Args:
        rows: The summaries of the evaluations, by the names of the table's rows.
        settings: The run's settings.
    """
    with_calls = {name: summary for name, summary in rows.items() if summary.calls}
    lines = [table(rows), "", *([tool_table(with_calls), ""] if with_calls else [])]
    for arm in ARMS:
        before, after = rows[f"{arm}, cold start"].accuracy, rows[f"{arm}, after RL"].accuracy
        if before and after:
            lines.append(f"RL, {arm}: {100 * (after.mean - before.mean):+.1f} points of accuracy")
    lines.append(
        f"accuracy is avg@{settings.k} on {settings.problems} held-out problems, temperature "
        f"{TEMPERATURE}, top-p {TOP_P}"
    )
    return "\n".join(lines)


def check_stages(settings: Settings) -> None:
    """Check the settings of all stages before the first stage runs.

    Raises:
        SettingsError: If a setting is unknown or out of range, or a stage's batch can't be divided.
    """
    env = {**settings.env, "interpreter": True}
    cold = stage_settings(sft, settings, "sft", env, model=first_model(settings))
    sft.sft_config(cold, Path(), *sft.check_batch(cold, 1))
    rl = stage_settings(grpo, settings, "grpo", env)
    with prefixed("env"):
        rules = make_rules(**rl.env)
    grpo.grpo_config(rl, Path(), rules.max_tokens, *grpo.check_batch(rl, 1), {})


def first_model(settings: Settings) -> str:
    """The model with which the cold starts begin."""
    return settings.sft.get("model", settings.model)


def stage_settings(
    module: Any, settings: Settings, name: str, env: dict[str, Any], **others: Any
) -> Any:
    """The settings of a stage: the settings that all stages share, and the stage's own.

    Args:
        module: The algorithm's module.
        settings: The settings of the main job.
        name: The name of the stage.
        env: The environment of the arm.
        **others: Settings that override the stage's own.
    """
    chosen = getattr(settings, module.__name__.rpartition(".")[2])
    shared = {key: getattr(settings, key) for key in ("dtype", "sandbox", "seed", "report_to")}
    # A stage may change the environment: a cold start needs problems that a script can solve.
    env = override_env(env, {**chosen.get("env", {}), "interpreter": env["interpreter"]})
    return build_settings(module.Settings, {**shared, **chosen, **others, "name": name, "env": env})


def _evaluate(
    settings: Settings, run: _Job, name: str, env: dict[str, Any], checkpoint: Path
) -> Summary:
    path = run.folder / "stages" / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    if path.exists():
        cure = f"delete {path}, so that the model is evaluated again"
        record = read_object(path, cure)
        with intact(path, cure):
            return build(Summary.from_json, record, "summary")
    rules, source = find_task({**env, "split": "test", "faults": None})
    problems = [source[i] for i in range(settings.problems)]
    policy = load_policy(
        str(checkpoint), dtype=settings.dtype, temperature=TEMPERATURE, top_p=TOP_P
    )
    sandbox = find_sandbox(settings.sandbox, rules)

    def evaluated(*_: Any) -> None:
        bar.advance()
        if run.stopping.asked():
            raise RolloutsAbandoned("the evaluation was abandoned")

    with sandbox or contextlib.nullcontext(), Bar(f"evaluating {name}", len(problems)) as bar:
        summary, transcripts = evaluate(
            policy, rules, problems, settings.k, sandbox, settings.seed, evaluated
        )
    transcripts_path = path.with_suffix(".transcripts.jsonl")
    transcripts_path.unlink(missing_ok=True)
    write_transcripts(transcripts_path, transcripts)
    write_atomically(path, json.dumps(summary.to_json()))
    print(table({name: summary}))
    return summary


def _link(folder: Path) -> None:
    """Link the records and the model of the interpreter arm's GRPO run into the folder."""
    for name in ("metrics.jsonl", "transcripts.jsonl", "checkpoint"):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path("stages") / "interpreter-grpo" / name)
