"""Results of parts of the recovery study, made up."""

from __future__ import annotations

import json

from benchmarks.parts.study_plan import Plan, all_parts


def evaluation(fault: float, weights: str = "w"):
    """An evaluation of a model that is right in a share of the episodes after a fault."""
    names = [f"p{number}" for number in range(12)]
    rows = [[name, fault if at % 3 else fault / 2, 1.0, 4] for at, name in enumerate(names)]
    figure = {"mean": 0.25, "low": 0.1, "high": 0.4, "shown": True}
    halves = [[True, 0.5], [False, fault]]
    return {
        "of": {"weights": weights},
        "use": {
            name: {"calls": 1.0 + fault * (1 + at % 2), "gain": 0.5, "halves": halves}
            for at, name in enumerate(names)
        },
        "pairs": {"busy": rows, "empty": rows},
        "accuracy": {name: [0.5, 4] for name in names},
        "next": {
            "control": [[name, 0.5, 0.0, 4] for name in names],
            "busy": [
                [name, fault if at % 3 else fault / 2, 0.25, 4] for at, name in enumerate(names)
            ],
        },
        "figures": {
            "frequency/gain": figure,
            "frequency/over_use": {**figure, "shown": False},
        },
    }


def third(ran: float):
    """The third of a training in which a share of the calls after a failure ran."""
    estimate = {"count": 30, "interval": {"mean": ran, "low": ran - 0.1, "high": ran + 0.1}}
    shares = {"code_ratio": 0.5, "first_call_at": 0.1, "call_pass_rate": 0.9}
    return {**shares, "recovery": {"next_call_ok": estimate, "accuracy": estimate}}


TRAINING = {"20": third(0.8), "40": third(0.5), "60": third(0.4)}


def write(plan: Plan, name: str, **values) -> None:
    """Writes the results of a part."""
    part = next(part for part in all_parts() if part.name == name)
    head = {"seconds": {"command": 120.0}, "date": "2026-11-30T12:00:00+00:00"}
    head["began_with"] = dict.fromkeys(part.after, "w")
    plan.file(name).write_text(json.dumps({"part": name, **head, **values}))
