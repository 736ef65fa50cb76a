"""Evaluates a run along its training: each exported model, on the same held-out problems.

    python -m agents grpo --preset tiny export_steps=10
    python -m benchmarks.along runs/grpo

The paper measures each saved checkpoint on the evaluation set (section 3.3). Step 0 is the initial
model of the run. A model with transcripts in the run's folder `along/` is not evaluated again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from agents.base.board import Bar
from agents.base.config import read_config
from agents.base.records import (
    check_kinds,
    damaged,
    intact,
    read_episodes,
    read_object,
    write_atomically,
    write_transcripts_atomically,
)
from agents.base.settings import SettingsError, find_sandbox, find_task
from retool_env.checkpoint_task import TEMPERATURE, TOP_P
from retool_env.evaluation.run import evaluate
from retool_env.execution import Sandbox, SandboxUnavailable
from retool_env.metrics.summary import summarise
from retool_env.metrics.tables import table
from retool_env.problem import Problem
from retool_env.rollout.transformers.policy import load_policy
from retool_env.rules import Rules
from retool_env.transcript import Transcript


def models(run: Path) -> dict[int, str]:
    """The models of a run by step, the initial model included.

    Raises:
        SettingsError: If the folder holds no run, or the run exported no models.
    """
    first = _settings(run, {"model": str})["model"]
    kept = {
        int(path.parent.name): str(path.parent)
        for path in run.glob("checkpoints/*/config.json")
        if path.parent.name.isdecimal()  # a half-written model has another name
    }
    if not kept:
        raise SettingsError(
            f"{run} kept no models along its training: train it with export_steps=10, say"
        )
    return {0: first, **dict(sorted(kept.items()))}


def _settings(run: Path, needed: dict[str, Any]) -> dict[str, Any]:
    """Read the settings of a run.

    Args:
        run: The run's folder.
        needed: The types of the required settings, by name.

    Raises:
        SettingsError: If the folder holds no run, or its `config.json` is damaged.
    """
    config = run / "config.json"
    if not config.exists():
        raise SettingsError(f"{run} holds no run: name the folder of a run, with a config.json")
    settings = read_config(run)["settings"]
    with intact(config, "evaluate another run", "settings: "):
        check_kinds(settings, needed, needed)
    return settings


def held_out(env: dict[str, Any], number: int) -> tuple[Rules, list[Problem]]:
    """The rules of an environment, and its first held-out problems.

    Args:
        env: The environment's id and settings.
        number: The number of problems.

    Raises:
        SettingsError: If there are fewer problems.
    """
    rules, source = find_task({**env, "split": "test", "faults": None})
    if number > len(source):
        few = f"there are only {len(source)} held-out problems, not {number}"
        raise SettingsError(f"{few}: lower --problems")
    return rules, [source[i] for i in range(number)]


def evaluate_along(
    run: Path, problems: int, k: int, seed: int = 0
) -> Iterator[tuple[int, list[Transcript]]]:
    """Evaluate the models of a run, in the order of their steps.

    Sampling uses the paper's temperature and top-p.

    Args:
        run: The run's folder.
        problems: The number of held-out problems; all models get the same problems.
        k: Episodes per problem.
        seed: The sampling seed.

    Yields:
        The step of a model, and the transcripts of its evaluation.

    Raises:
        SettingsError: If the folder holds no run, the run exported no models, or an earlier
            evaluation had other settings.
    """
    of_run = models(run)
    settings = _settings(run, {"dtype": str, "env": dict, "sandbox": str | dict})
    rules, chosen = held_out(settings["env"], problems)
    folder = run / "along"
    folder.mkdir(exist_ok=True)
    _same(folder / "evaluation.json", {"problems": problems, "k": k, "seed": seed})
    sampling: dict[str, Any] = {"temperature": TEMPERATURE, "top_p": TOP_P, "max_batch": 128}
    sandbox: Sandbox | None = None
    with Bar(f"evaluating {run}", len(of_run)) as bar, ExitStack() as resources:
        for step, model in of_run.items():
            path = folder / f"{step}.jsonl"
            if not path.exists():
                if sandbox is None and (sandbox := find_sandbox(settings["sandbox"], rules)):
                    resources.enter_context(sandbox)
                policy = load_policy(model, settings["dtype"], **sampling)
                _, transcripts = evaluate(policy, rules, chosen, k, sandbox, seed)
                write_transcripts_atomically(path, transcripts)
                del policy  # frees memory for the next model
            bar.advance()
            cure = f"delete {path}: that model is then evaluated again"
            episodes = list(read_episodes(path, cure))
            if len(episodes) != problems * k:
                damage = f"it holds {len(episodes)} of {problems * k} episodes"
                raise damaged(path, damage, cure)
            yield step, episodes


def _same(path: Path, how: dict[str, Any]) -> None:
    """Write the settings of the evaluation to a file, or compare them with the file.

    Args:
        path: The file.
        how: The settings.

    Raises:
        SettingsError: If the file holds other settings.
    """
    cure = f"remove {path.parent}: all models are then evaluated again"
    if not path.exists():
        write_atomically(path, json.dumps(how) + "\n")
    elif (before := read_object(path, cure)) != how:
        raise SettingsError(
            f"{path.parent} holds an evaluation with {before}, not {how}: remove that folder"
        )


def main(arguments: list[str] | None = None) -> int:
    """Evaluate a run's models, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--problems", type=int, default=100, help="held-out problems (100)")
    parser.add_argument("--k", type=int, default=4, help="episodes per problem (4)")
    parser.add_argument("--seed", type=int, default=0, help="sampling seed (0)")
    options = parser.parse_args(arguments)
    if min(options.problems, options.k) < 1:
        parser.error("--problems and --k must be at least 1")
    try:
        along = evaluate_along(options.run, options.problems, options.k, options.seed)
        print(table({f"step {step}": summarise(transcripts) for step, transcripts in along}))
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    except (SettingsError, OSError, ValueError, SafetensorError, SandboxUnavailable) as error:
        print(f"python -m benchmarks.along: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
