"""Results of an evaluation in the form that a model's repository on the Hugging Face Hub holds.

A repository has a file `.eval_results/NAME.yaml` for each result. The Hub shows the result on the
model's page and, if the data set is registered there as a benchmark, on its leaderboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from retool_env.errors import SettingsError
from retool_env.evaluation.records import EpisodeRecord, EvalRecord
from retool_env.files import read_text
from retool_env.metrics.estimators import ClusterMean, cluster_mean

FOLDER = ".eval_results"
"""The folder of results in a model's repository."""

DATA_SETS = {
    "ReTool-AIME24-v0": "HuggingFaceH4/aime_2024",
    "ReTool-AIME25-v0": "math-ai/aime25",
    "ReTool-GSM8K-v0": "openai/gsm8k",
    "ReTool-MATH-v0": "DigitalLearningGmbH/MATH-lighteval",
    "ReTool-DAPO-v0": "BytedTsinghua-SIA/DAPO-Math-17k",
}
"""The data set on the Hub whose problems an environment has."""


def accuracy_of(episodes: Iterable[EpisodeRecord]) -> tuple[ClusterMean, int]:
    """Accuracy over the scored episodes, with the interval over problems.

    Returns:
        The accuracy, and the number of episodes that are not scored.
    """
    unscored = 0
    cases: list[tuple[str, float]] = []
    for episode in episodes:
        if episode.transcript.scored:
            cases.append((episode.problem, float(bool(episode.transcript.correct))))
        else:
            unscored += 1
    return cluster_mean(cases, share=True), unscored


def write_hub(
    episodes: Iterable[EpisodeRecord],
    record: EvalRecord,
    repository: Path,
    dataset: str | None = None,
    task: str | None = None,
) -> Path:
    """Writes the result of an evaluation for a model's repository.

    Args:
        episodes: The episodes.
        record: The record of the evaluation.
        repository: A clone of the model's repository, or a folder to upload.
        dataset: The benchmark's data set on the Hub; `None`: the environment's.
        task: The id of the task in the benchmark's `eval.yaml`; `None`: `default`.

    Returns:
        The file.

    Raises:
        SettingsError: The evaluation is not finished or has no scored episode, or the data set is
            not known.
    """
    dataset = dataset or DATA_SETS.get(record.env)
    if dataset is None:
        raise SettingsError(
            f"the problems of {record.env} have no data set on the Hub: name a benchmark with "
            "--dataset ORG/NAME"
        )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", dataset):
        raise SettingsError(f"--dataset must be ORG/NAME, not {dataset!r:.60}")
    if record.status != "finished":
        raise SettingsError(
            f"the evaluation is {record.status}: finish it with --resume before its result is shown"
        )
    if repository.exists() and not repository.is_dir():
        raise SettingsError(f"--out must be a folder, but {repository} is a file")
    interpreter = False

    def seen() -> Iterable[EpisodeRecord]:
        nonlocal interpreter
        for episode in episodes:
            interpreter |= episode.transcript.interpreter
            yield episode

    accuracy, unscored = accuracy_of(seen())
    if accuracy.mean is None:
        raise SettingsError("every episode failed, so a result cannot be computed")
    entry: dict[str, Any] = {
        "dataset": {"id": dataset, "task_id": task or "default"},
        "value": round(100 * accuracy.mean, 2),
    }
    if record.started:
        entry["date"] = record.started[:10]
    entry["notes"] = _notes(record, accuracy, unscored, interpreter)
    name = dataset.partition("/")[2].lower() + ("_with_tools" if interpreter else "")
    path = repository / FOLDER / f"{name}.yaml"
    if path.exists() and "of retool-env, revision" not in " ".join(read_text(path).split()):
        raise SettingsError(f"{path} is not of retool-env: remove it, or choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(text, encoding="utf-8")
    return path


def _notes(record: EvalRecord, accuracy: ClusterMean, unscored: int, interpreter: bool) -> str:
    parts = ["With tools"] if interpreter else ["Without tools"]
    parts += [f"avg@{record.k} of {accuracy.clusters} problems, in percent"]
    if accuracy.low is not None and accuracy.high is not None:
        low, high = 100 * accuracy.low, 100 * accuracy.high
        parts.append(f"95 % interval {low:.1f} to {high:.1f}")
    if unscored:
        parts.append(f"{unscored} episodes failed and are left out")
    parts.append(f"{record.env} of retool-env, revision {record.revision}")
    return "; ".join(parts)
