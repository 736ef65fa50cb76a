"""The row of an episode holds what a list shows and filters."""

import dataclasses
import json
import math

from helpers.episodes import ANSWERED, LATE, NAME, OK, RIGHT, TYPE, episode, with_ids
from helpers.viewed_runs import FAULTY, hostile

from retool_env.evaluation.runs import Place
from retool_env.evaluation.view.rows import FIELDS, make_row, to_json
from retool_env.transcript import Parent, StopReason

CODE = "<code>a</code>"


def row(transcript, **place):
    return make_row(Place("p/0", "p", **place), transcript)


def test_a_row_counts_calls_failures_turns_and_sampled_tokens():
    turns = ((CODE, NAME), (CODE, TYPE), (CODE, NAME), (CODE, LATE), ("hm", "..."), (CODE, OK))
    made = row(with_ids(episode("p", ANSWERED, *turns, RIGHT, correct=True)))
    assert made.keys() == FIELDS
    assert (made["calls"], made["failed"], made["void"], made["turns"]) == (5, 4, 1, 7)
    assert made["errors"] == ["NameError", "TypeError", "timeout"]
    assert made["tokens"] == 2 * (5 * len(CODE) + len("hm") + len(RIGHT))
    assert (made["right"], made["stop"], made["reward"]) == (True, "answered", 1.0)


def test_a_failure_is_counted_as_shown_and_an_injected_fault_by_its_kind():
    ordered = dataclasses.replace(
        OK, fault=dataclasses.replace(FAULTY.fault, injected=False, kind="truncated")
    )
    made = row(episode("p", ANSWERED, (CODE, FAULTY), (CODE, ordered), RIGHT))
    assert (made["failed"], made["errors"], made["faults"]) == (1, ["timeout"], ["timeout"])


def test_a_turn_that_a_budget_cut_is_void():
    assert row(episode("p", StopReason.TOKEN_BUDGET, (CODE, OK), RIGHT))["void"] == 1
    assert row(episode("p", ANSWERED, (CODE, OK), RIGHT))["void"] == 0


def test_long_texts_are_shortened_and_missing_ones_are_null():
    made = episode("p", StopReason.INFRASTRUCTURE, RIGHT)
    question = dataclasses.replace(made.problem, question="q" * 500)
    short = row(dataclasses.replace(made, answer="a" * 500, problem=question))
    assert (len(short["answer"]), len(short["question"])) == (80, 120)
    assert short["question"].endswith("…")
    empty = row(made)
    assert (empty["answer"], empty["right"], empty["reward"], empty["tokens"]) == (None,) * 4


def test_a_fork_is_named_by_its_record_and_elsewhere_by_its_transcript():
    made = dataclasses.replace(episode("p", ANSWERED, RIGHT), parent=Parent(3, 2, "timeout"))
    names = ("arm", "parent", "call")
    assert [row(made)[name] for name in names] == ["timeout", 3, 2]
    place = {"protocol": "fork", "arm": "control", "parent": 1, "call": 1}
    assert [row(made, **place)[name] for name in names] == ["control", 1, 1]


def test_a_row_is_json_whatever_the_texts_and_numbers_are():
    made = row(dataclasses.replace(hostile(), reward=math.nan))
    assert json.loads(to_json(made)) == made
    assert made["reward"] is None
    to_json(made).encode("ascii")


def test_json_has_null_for_numbers_that_it_lacks():
    assert (
        to_json({"a": [math.inf, {"b": math.nan}], "c": 1.5}) == '{"a":[null,{"b":null}],"c":1.5}'
    )
