"""Equal revision, seed, settings and actions give the same episode: the golden file holds it."""

from __future__ import annotations

from typing import Any

import pytest
from golden.golden import play, read

from retool_env import REVISION, Transcript, check_transcript
from retool_env.sandbox import Sandbox

CASES = read()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_an_episode_is_what_it_was(case: dict[str, Any], sandbox: Sandbox) -> None:
    assert play(case, sandbox) == case["transcript"]


def test_the_file_is_of_this_revision() -> None:
    assert {case["transcript"]["revision"] for case in CASES} == {REVISION}


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES) >= 60


def test_they_are_transcripts() -> None:
    for case in CASES:
        record = case["transcript"]
        spans = [{**span, "seconds": 0.0} for span in record["spans"]]
        check_transcript(Transcript.from_json({**record, "spans": spans}))


def test_they_end_in_every_way_that_actions_decide() -> None:
    ends = {case["transcript"]["stop_reason"] for case in CASES}
    assert ends >= {
        "answered",
        "stopped",
        "void_turn",
        "call_limit",
        "token_budget",
        "character_budget",
        None,
    }
    outcomes = {
        span["execution"]["outcome"]
        for case in CASES
        for span in case["transcript"]["spans"]
        if span["execution"]
    }
    assert outcomes == {
        "ok",
        "syntax_error",
        "runtime_error",
        "timeout",
        "memory_limit",
        "output_limit",
        "blocked",
    }
