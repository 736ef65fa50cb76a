"""Runs for the viewer: of every kind, with forks, faults and hostile texts."""

from __future__ import annotations

import dataclasses
import json

from helpers.episodes import ANSWERED, NAME, OK, RIGHT, WRONG, episode, sample
from helpers.run_folders import write_record
from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import EpisodeRecord, EvalRecord
from retool_env.evaluation.recover.records import ArmRecord, RecoverRecord
from retool_env.execution import Execution, Fault, Outcome
from retool_env.transcript import Parent, write_transcripts

SETTINGS = {
    **{"env": "ReTool-Arithmetic-v0", "settings": {}, "rules": {}, "prompt": "{query}"},
    **{"problems": 1, "fingerprint": "", "sampling": {}, "k": 1, "seed": 0},
}

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)></script><!-- \x1b[31mred\x1b[0m "
    "\u202eright to left\u202c \u200bzero\u200d \x00 \ud800 \u2028 \u2029 ]]> &amp; '\" \\ \r\n"
)
"""Markup, terminal codes, marks of direction, invisible characters, half a surrogate pair."""

REAL = Execution(Outcome.OK, "42\n")
FAULTY = Execution(Outcome.TIMEOUT, "", "time limit", fault=Fault("timeout", True, REAL))


def append(path, *records):
    """Append records to a file."""
    with open(path, "a") as file:
        file.writelines(json.dumps(each.to_json()) + "\n" for each in records)


def evaluated(number, problem="p/1", **others):
    """An episode of an evaluation with a call; those of odd numbers are right."""
    right = number % 2 == 1
    made = sample(problem, "42" if right else "4", ("so <code>a</code>", OK), correct=right)
    return EpisodeRecord("m", problem, number, 0, made, **others)


def an_eval(folder, count=2, status="finished", **others):
    """The folder of an evaluation of one problem."""
    record = EvalRecord(
        "run",
        ModelIdentity("models/a/checkpoint", "checkpoint"),
        **SETTINGS | others,
        status=status,
    )
    return write_record(folder, record, map(evaluated, range(count)))


def a_recover(folder):
    """A benchmark: one parent, whose first call has two control forks and two with a fault."""
    model = ModelIdentity("m", "hub")
    record = RecoverRecord("run", model, **SETTINGS, suite="v0", status="finished")
    turn = "I see.\n<code>\nprint(6 * 7)\n</code>"
    whole = sample("p", "42", (turn, OK), correct=True)
    parent = ArmRecord("m", "p", 0, 0, whole, protocol="dose", arm="0")
    records = [parent]
    for arm, shown, rights in (("timeout", FAULTY, (1, 0)), ("control", OK, (1, 1))):
        for number, right in enumerate(rights):
            made = sample("p", "42" if right else "4", (turn, shown), correct=bool(right))
            made = dataclasses.replace(made, parent=Parent(0, 1, arm))
            fork = {"protocol": "fork", "arm": arm, "parent": 0, "call": 1}
            records.append(ArmRecord("m", "p", number, 0, made, **fork))
    return write_record(folder, record, records)


def a_training(folder):
    """A training run of two processes and two evaluations."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": {"lr": 1}, "revision": 4}))
    first, second = episode("p", ANSWERED, RIGHT, correct=True), episode("q", ANSWERED, WRONG)
    write_transcripts(folder / "transcripts.jsonl", [first, second])
    write_transcripts(folder / "transcripts-1.jsonl", [first])
    write_transcripts(folder / "eval-10.jsonl", [first, first, second])
    write_transcripts(folder / "eval-2.jsonl", [first])
    return folder


def hostile(problem="h"):
    """An episode with a hostile text in every field that holds a text."""
    shown = Execution(
        Outcome.RUNTIME_ERROR, HOSTILE, HOSTILE, HOSTILE, fault=Fault(HOSTILE, True, NAME)
    )
    made = sample(problem, HOSTILE, (f"{HOSTILE}<code>{HOSTILE}</code>", shown), WRONG)
    question = dataclasses.replace(
        made.problem, question=HOSTILE, answer=HOSTILE, metadata={HOSTILE: HOSTILE}
    )
    return dataclasses.replace(made, problem=question)


def a_page(folder):
    """A small page of the form that the server and the files expect."""
    folder.mkdir()
    (folder / "index.html").write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<link rel="stylesheet" href="style.css">\n</head>\n<body>\n'
        '<script type="module" src="main.js"></script>\n</body>\n</html>\n'
    )
    (folder / "style.css").write_text("body { color: #000 }\n")
    (folder / "main.js").write_text(
        'import { one } from "./one.js";\nimport {\n  two,\n  three,\n} from "./two.js";\n\n'
        "export function main() {\n  return one + two + three;\n}\n\nmain();\n"
    )
    (folder / "one.js").write_text('import { two } from "./two.js";\n\nexport const one = two;\n')
    (folder / "two.js").write_text("export const two = 2;\nexport async function three() {}\n")
    (folder / "notes.txt").write_text("not a file of the page\n")
    return folder
