"""Folders of recorded runs, written from finished transcripts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import EpisodeRecord, EvalRecord
from retool_env.evaluation.recover.records import ArmRecord, RecoverRecord
from retool_env.transcript import write_transcripts

SETTINGS = {
    **{"env": "ReTool-Arithmetic-v0", "settings": {}, "rules": {"max_calls": 3}, "prompt": ""},
    **{"problems": 9, "fingerprint": "", "sampling": {}, "k": 1, "seed": 0, "status": "finished"},
}


def fill(path: Path, records) -> None:
    """Writes records as JSON lines, in place of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each.to_json()) + "\n" for each in records))


def write_record(folder: Path, record: EvalRecord, episodes=()) -> Path:
    """Writes the record of a run, of `retool recover` too, and its episodes; returns the folder."""
    fill(folder / "episodes.jsonl", episodes)
    name = "recover.json" if isinstance(record, RecoverRecord) else "eval.json"
    (folder / name).write_text(json.dumps(record.to_json()))
    return folder


def an_eval(folder: Path, transcripts, usage=None, model="models/a/checkpoint", **record) -> Path:
    """The folder of an evaluation.

    Args:
        folder: The folder, which is made.
        transcripts: The episodes, in the order of the samples.
        usage: The tokens of each episode; `None`: no API counted.
        model: The name of the model.
        **record: Other values of `eval.json`.
    """
    numbers: Counter[str] = Counter()
    episodes = []
    for transcript in transcripts:
        name = transcript.problem.id
        episodes.append(EpisodeRecord(model, name, numbers[name], 0, transcript, usage))
        numbers[name] += 1
    made = EvalRecord("run", ModelIdentity(model, "checkpoint"), **SETTINGS | record)
    return write_record(folder, made, episodes)


def a_training(folder: Path, rollouts=(), held_out=None, records=(), done=True, **settings) -> Path:
    """The folder of a training run.

    Args:
        folder: The folder, which is made.
        rollouts: The rollouts by training step, as pairs of step and transcript.
        held_out: The transcripts of the evaluation after each step.
        records: The lines of `metrics.jsonl`.
        done: Whether the run is finished.
        **settings: The settings of the run.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"settings": settings, "revision": 4}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    trained = [dataclasses.replace(t, trained_version=step - 1) for step, t in rollouts]
    if trained:
        write_transcripts(folder / "transcripts.jsonl", trained)
    for step, transcripts in (held_out or {}).items():
        write_transcripts(folder / f"eval-{step}.jsonl", transcripts)
    if done:
        (folder / "done").touch()
    return folder


def a_recover(folder: Path, parents, others=(), **record) -> Path:
    """The folder of a benchmark of recovery.

    Args:
        folder: The folder, which is made.
        parents: The whole episodes without faults.
        others: The whole episodes with faults at the rate 0.5.
        **record: Other values of `recover.json`.
    """
    more = {"suite": "v0", "part": "offline", "kinds": ["timeout"], "rates": [0.0, 0.5]}
    values = {**SETTINGS, **more, "protocols": ["dose"], **record}
    episodes = [
        ArmRecord("m", transcript.problem.id, 0, 0, transcript, protocol="dose", arm=arm)
        for arm, transcripts in (("0", parents), ("0.5", others))
        for transcript in transcripts
    ]
    return write_record(folder, RecoverRecord("run", ModelIdentity("m", "hub"), **values), episodes)
