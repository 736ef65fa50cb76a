"""Examples are chosen by rule, and shown with every author named."""

import dataclasses

import pytest
from helpers.episodes import (
    ALL,
    ANSWERED,
    BROKEN,
    CUT,
    DIRECT,
    GUESS,
    MENDED,
    NEVER,
    PAUSED,
    RAN,
    STUBBORN,
    TWICE,
    episode,
)
from helpers.run_folders import an_eval

from retool_env.evaluation.report.examples import MOST, examples, facts, text_of
from retool_env.evaluation.report.subject import read_subjects

KINDS = ["Right, with the interpreter", "Not right", "An error that a later call mended"]


def chosen(folder, transcripts):
    [subject] = read_subjects([an_eval(folder / "run", transcripts)], lambda line: None)
    return {kind: transcript for kind, (_, transcript) in examples(subject).items()}


def test_each_kind_has_its_first_episode(tmp_path):
    assert chosen(tmp_path, ALL) == dict(zip(KINDS, (RAN, NEVER, MENDED), strict=True))


@pytest.mark.parametrize(
    ("transcripts", "expected"),
    [
        ([], []),
        ([DIRECT, BROKEN], []),  # right without a call; not scored
        ([CUT, GUESS], [CUT]),  # no wrong episode has a call
        ([TWICE, PAUSED], [TWICE, PAUSED]),  # a right episode shows a mended error better
        ([STUBBORN], []),  # its only call failed
    ],
)
def test_a_kind_without_an_episode_is_left_out(tmp_path, transcripts, expected):
    assert list(chosen(tmp_path, transcripts).values()) == expected


def test_each_part_has_its_author_and_the_end_is_a_sentence():
    text = text_of(MENDED)
    assert text.startswith("── prompt ──\n?\n\n── model ──\n<code>a\n\nb</code>")
    assert "── environment ──\n42" in text
    assert facts(MENDED) == (
        "no answer, reference answer '42'; reward 1.0; 2 calls, of which 1 ran; end: answered."
    )
    assert "answer '7'" in facts(dataclasses.replace(MENDED, answer="7"))


def test_the_middle_of_a_long_episode_is_left_out():
    text = text_of(episode("p", ANSWERED, "start" + "x" * 100_000 + "the end"))
    assert len(text) < MOST + 100
    assert "start" in text and text.endswith("the end")
    assert "[… 94,0" in text and "characters are left out …]" in text
