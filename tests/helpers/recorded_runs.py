"""Recorded runs of every kind, whose programs really ran."""

from __future__ import annotations

from helpers.run_folders import a_training, an_eval
from retool_env.episode import Episode, RunProgram
from retool_env.evaluation.records import rules_to_json
from retool_env.grading import is_equivalent
from retool_env.interpreter import Interpreter
from retool_env.problem import Problem
from retool_env.rules import Rules
from retool_env.transcript import StopReason


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
    record = {"rules": rules_to_json(rules), "prompt": rules.template}
    return an_eval(folder, transcripts, model="models/m", **record)


def write_training(folder, transcripts, **env):
    """Write the folder of a training run with these settings `env`; returns the folder."""
    env = {"id": "ReTool-Arithmetic-v0", **env}
    return a_training(folder, [(1, made) for made in transcripts], name=folder.name, env=env)
