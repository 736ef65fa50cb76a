"""A run evaluated along its training: each model that it kept, on the same held-out problems.

    python -m agents grpo --preset tiny export_steps=10
    python -m benchmarks.along runs/grpo

The paper measures each saved checkpoint on the evaluation set (section 3.3). Step 0 is the model that the run began with. A
model whose transcripts lie in the run's folder `along/` is not evaluated again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from agents.base.board import Bar
from agents.base.config import read_config
from agents.base.records import (
    check_kinds,
    damaged,
    read_episodes,
    read_object,
    write_atomically,
    write_transcripts_atomically,
)
from agents.base.settings import SettingsError, find_sandbox, find_task
from retool_env.checkpoint_task import TEMPERATURE, TOP_P
from retool_env.evaluation.run import evaluate
from retool_env.execution import SandboxUnavailable
from retool_env.metrics.summary import summarise
from retool_env.metrics.tables import table
from retool_env.rollout.transformers.policy import load_policy
from retool_env.transcript import Transcript


def models(run: Path) -> dict[int, str]:
    """The models of a run by their steps, its first one included.

    Raises:
        SettingsError: If there is no run, or it kept none.
    """
    first = _settings(run, {"model": str})["model"]
    kept = {
        int(path.parent.name): str(path.parent)
        for path in run.glob("checkpoints/*/config.json")
        if path.parent.name.isdecimal()  # and no half one
    }
    if not kept:
        raise SettingsError(
            f"{run} kept no models along its training: train with export_steps=10, say"
        )
    return {0: first, **dict(sorted(kept.items()))}


def _settings(run: Path, needed: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run.

    Args:
        run: The run's folder.
        needed: The kinds of those that are needed, by name.

    Raises:
        SettingsError: If there is no run, or its `config.json` is damaged.
    """
    config = run / "config.json"
    if not config.exists():
        raise SettingsError(f"{run} holds no run")
    settings = read_config(run)["settings"]
    try:
        check_kinds(settings, needed, needed)
    except ValueError as error:
        raise damaged(config, f"settings: {error}", "evaluate another run") from None
    return settings


def evaluate_along(
    run: Path, problems: int, k: int, seed: int = 0
) -> Iterator[tuple[int, list[Transcript]]]:
    """The transcripts of each model of a run, in order of their steps.

    Args:
        run: The run's folder.
        problems: How many held-out problems, the same for each.
        k: Episodes a problem.
        seed: Of sampling, at the paper's temperature and top-p.

    Yields:
        The step, and its transcripts.

    Raises:
        SettingsError: If there is no run, it kept no models, or it has been evaluated otherwise.
    """
    found = models(run)
    settings = _settings(run, {"dtype": str, "env": dict, "sandbox": str | dict})
    rules, source = find_task({**settings["env"], "split": "test"})
    if problems > len(source):
        raise SettingsError(f"there are {len(source)} held-out problems, not {problems}")
    folder = run / "along"
    folder.mkdir(exist_ok=True)
    _same(folder / "evaluation.json", {"problems": problems, "k": k, "seed": seed})
    with Bar(f"evaluating {run}", len(found)) as bar:
        sandbox = None
        try:
            for step, model in found.items():
                path = folder / f"{step}.jsonl"
                if not path.exists():
                    if sandbox is None and rules.interpreter:
                        sandbox = find_sandbox(settings["sandbox"], rules)
                    policy = load_policy(
                        model,
                        settings["dtype"],
                        temperature=TEMPERATURE,
                        top_p=TOP_P,
                        max_batch=128,
                    )
                    chosen = [source[i] for i in range(problems)]
                    _, transcripts = evaluate(policy, rules, chosen, k, sandbox, seed)
                    write_transcripts_atomically(path, transcripts)
                    del policy  # its memory is wanted for the next
                bar.advance()
                cure = f"delete {path}: that model is then evaluated again"
                found_there = list(read_episodes(path, cure))
                if len(found_there) != problems * k:
                    raise damaged(
                        path, f"it holds {len(found_there)} of {problems * k} episodes", cure
                    )
                yield step, found_there
        finally:
            if sandbox is not None:
                sandbox.close()


def _same(path: Path, how: dict[str, Any]) -> None:
    """Note how the models are evaluated, once.

    Raises:
        SettingsError: If the note says otherwise.
    """
    cure = f"remove {path.parent}: all models are then evaluated again"
    if not path.exists():
        write_atomically(path, json.dumps(how) + "\n")
    elif (before := read_object(path, cure)) != how:
        raise SettingsError(
            f"{path.parent} holds an evaluation with {before}, not {how}: remove it"
        )


def main(arguments: list[str] | None = None) -> int:
    """Evaluates a run's models, and prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--problems", type=int, default=100, help="(100)")
    parser.add_argument("--k", type=int, default=4, help="episodes a problem (4)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (0)")
    options = parser.parse_args(arguments)
    if min(options.problems, options.k) < 1:
        parser.error("--problems and --k must be at least 1")
    try:
        found = evaluate_along(options.run, options.problems, options.k, options.seed)
        print(table({f"step {step}": summarise(transcripts) for step, transcripts in found}))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except (SettingsError, OSError, ValueError, SafetensorError, SandboxUnavailable) as error:
        print(f"python -m benchmarks.along: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
