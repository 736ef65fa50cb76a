"""The main job: a small model learns, by reward alone, to use the interpreter; beside it, text alone on the same budget.

Two arms, each a cold start and then GRPO, evaluated on held-out problems before and after. All of it lies in one run
folder, `stages/` below it holding a run of its own for each stage.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import grpo, sft
from agents.base.board import Bar, console
from agents.base.curves import draw_curves
from agents.base.fields import ModelSettings
from agents.base.records import build, damaged, read_object, read_records, write_atomically
from agents.base.reporting import check_report_to
from agents.base.run import Run
from agents.base.settings import build_settings, find_sandbox, find_task, setting, stage
from retool_env.checkpoint_task import TEMPERATURE, TOP_P
from retool_env.evaluation.run import evaluate
from retool_env.metrics.summary import Summary
from retool_env.metrics.tables import table, tool_table
from retool_env.rollout.transformers.policy import load_policy
from retool_env.transcript import write_transcripts

ONE_PROCESS = True
"""It is not for several processes."""

ARMS = {"interpreter": True, "text only": False}


@dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of the main job."""

    name: str = "tiny"
    env: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str = setting("tiny", "of the cold starts: a folder, a Hub id, or `tiny`")
    sft: dict[str, Any] = stage("settings of the cold starts (sft.epochs=2)", ())
    grpo: dict[str, Any] = stage(
        "settings of the reinforcement learning (grpo.steps=20)", ("model",)
    )
    problems: int = setting(200, "held-out problems")
    k: int = setting(4, "episodes a problem")


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Run the stages that have not been run yet, and show the table.

    Returns:
        The run's folder.
    """
    run = Run(folder, settings, resume)
    find_task(settings.env)
    check_report_to(settings.report_to)
    check_stages(settings)
    run.start()
    stages = folder / "stages"
    curves: dict[str, list[dict[str, Any]]] = {}
    rows: dict[str, Summary] = {}
    started = time.monotonic()
    for arm, interpreter in ARMS.items():
        slug = arm.replace(" ", "-")
        env = {**settings.env, "interpreter": interpreter}
        console.rule(f"{arm}: cold start")
        stage = stage_settings(sft, settings, f"{slug}-sft", env, model=first_model(settings))
        cold = sft.train(stage, stages / f"{slug}-sft", True)
        rows[f"{arm}, cold start"] = _evaluate(settings, run, f"{arm}, cold start", env, cold)
        console.rule(f"{arm}: reinforcement learning")
        stage = stage_settings(grpo, settings, f"{slug}-grpo", env, model=str(cold))
        trained = grpo.train(stage, stages / f"{slug}-grpo", True)
        rows[f"{arm}, after RL"] = _evaluate(settings, run, f"{arm}, after RL", env, trained)
        curves[arm] = read_records(stages / f"{slug}-grpo" / "metrics.jsonl")
        draw_curves(curves, folder / "curves.png")
    _link(folder)
    write_atomically(folder / "table.md", report(rows, settings) + "\n")
    run.finish()
    console.rule("result")
    print(report(rows, settings))
    print(f"\n{time.monotonic() - started:.0f} s in this start; picture: {folder / 'curves.png'}")
    return folder


def report(rows: dict[str, Summary], settings: Settings) -> str:
    """The final table, and what RL gained in each arm."""
    with_calls = {name: summary for name, summary in rows.items() if summary.calls}
    lines = [table(rows), "", *([tool_table(with_calls), ""] if with_calls else [])]
    for arm in ARMS:
        before, after = rows[f"{arm}, cold start"].accuracy, rows[f"{arm}, after RL"].accuracy
        if before and after:
            lines.append(f"RL, {arm}: {100 * (after.mean - before.mean):+.1f} points of accuracy")
    lines.append(
        f"accuracy is avg@{settings.k} on {settings.problems} held-out problems, temperature {TEMPERATURE}, top-p {TOP_P}"
    )
    return "\n".join(lines)


def check_stages(settings: Settings) -> None:
    """Check the stages' settings before the first of them takes its time.

    Raises:
        SettingsError: If one is unknown or out of range, or a stage's batch can't be shared out.
    """
    env = {**settings.env, "interpreter": True}
    sft.check_batch(stage_settings(sft, settings, "sft", env, model=first_model(settings)), 1)
    grpo.check_batch(stage_settings(grpo, settings, "grpo", env), 1)


def first_model(settings: Settings) -> str:
    """The model that the cold starts begin with."""
    return settings.sft.get("model", settings.model)


def stage_settings(
    module: Any, settings: Settings, name: str, env: dict[str, Any], **others: Any
) -> Any:
    """Settings of a stage: those that all stages share, then its own."""
    own = getattr(settings, module.__name__.rpartition(".")[2])
    shared = {key: getattr(settings, key) for key in ("dtype", "sandbox", "seed", "report_to")}
    # A stage may have an environment of its own: a cold start's problems, whose traces a script writes.
    env = {**env, **own.get("env", {}), "interpreter": env["interpreter"]}
    return build_settings(module.Settings, {**shared, **own, **others, "name": name, "env": env})


def _evaluate(
    settings: Settings, run: Run, name: str, env: dict[str, Any], checkpoint: Path
) -> Summary:
    path = run.folder / "stages" / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    if path.exists():
        cure = f"delete {path}: the model is then evaluated again"
        record = read_object(path, cure)
        try:
            return build(Summary.from_json, record, "summary")
        except ValueError as error:
            raise damaged(path, str(error), cure) from None
    rules, source = find_task({**env, "split": "test"})
    problems = [source[i] for i in range(settings.problems)]
    policy = load_policy(
        str(checkpoint), dtype=settings.dtype, temperature=TEMPERATURE, top_p=TOP_P
    )
    sandbox = find_sandbox(settings.sandbox, rules)
    try:
        with Bar(f"evaluating {name}", len(problems)) as bar:
            summary, transcripts = evaluate(
                policy,
                rules,
                problems,
                settings.k,
                sandbox,
                settings.seed,
                lambda *_: bar.advance(),
            )
    finally:
        if sandbox is not None:
            sandbox.close()
    transcripts_path = path.with_suffix(".transcripts.jsonl")
    transcripts_path.unlink(missing_ok=True)
    write_transcripts(transcripts_path, transcripts)
    write_atomically(path, json.dumps(summary.to_json()))
    print(table({name: summary}))
    return summary


def _link(folder: Path) -> None:
    """Make the interpreter arm's run, which the job is about, the folder's own."""
    for name in ("metrics.jsonl", "transcripts.jsonl", "checkpoint"):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path("stages") / "interpreter-grpo" / name)
