"""Recorded runs of every kind, whose programs really ran."""

from __future__ import annotations

import json

from retool_env.episode import Episode, RunProgram
from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import EpisodeRecord, EvalRecord, rules_to_json
from retool_env.grading import is_equivalent
from retool_env.interpreter import Interpreter
from retool_env.problem import Problem
from retool_env.rules import Rules
from retool_env.transcript import StopReason, write_transcripts


def code(program):
    """A turn with a program."""
    return f"<code>\n{program}\n</code>"


def played(sandbox, *turns, rules=None, problem="p", gold="42", schedule=None):
    """The transcript of an episode of these text turns; their programs run in the sandbox."""
    rules = Rules() if rules is None else rules
    question = Problem(id=problem, question="6 * 7?", answer=gold)
    episode, interpreter = Episode(question, rules, schedule=schedule), Interpreter(sandbox)
    for turn in turns:
        need = episode.act(turn)
        if isinstance(need, RunProgram):
            episode.executed(interpreter.run(need))
        elif need is not None:
            episode.graded(is_equivalent(need.answer, need.gold))
    if not episode.done:
        episode.cut(StopReason.CANCELLED)
    interpreter.close()
    return episode.transcript


def write_eval(folder, transcripts, rules=None):
    """Write the folder of an evaluation; returns the folder. The addresses are `PROBLEM/SAMPLE`."""
    rules = Rules() if rules is None else rules
    samples, lines = {}, []
    for transcript in transcripts:
        name = transcript.problem.id
        sample = samples[name] = samples.get(name, -1) + 1
        lines.append(EpisodeRecord("m", name, sample, 0, transcript).to_json())
    record = EvalRecord(
        **{"name": "run", "model": ModelIdentity("models/m", "checkpoint")},
        **{"env": "ReTool-Arithmetic-v0", "settings": {}, "rules": rules_to_json(rules)},
        **{"prompt": rules.template, "problems": len(samples), "fingerprint": "", "sampling": {}},
        **{"k": 1, "seed": 0},
    )
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps(record.to_json()))
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_training(folder, transcripts, **env):
    """Write the folder of a training run with these settings `env`; returns the folder."""
    folder.mkdir(parents=True)
    settings = {"name": folder.name, "env": {"id": "ReTool-Arithmetic-v0", **env}}
    (folder / "config.json").write_text(json.dumps({"settings": settings, "revision": 4}))
    write_transcripts(folder / "transcripts.jsonl", transcripts)
    return folder
