"""Each invariant of a record holds for what an episode writes, and its violation is named."""

import dataclasses
import json
import re

import pytest
from helpers import ROOT
from helpers.episodes import with_ids
from helpers.recorded_runs import code, played

from retool_env.evaluation.recorded_rules import RecordedRules
from retool_env.evaluation.replay.checks import check_episode
from retool_env.rules import Rules
from retool_env.transcript import Parent, StopReason, Transcript

RULES = Rules(max_calls=3, void_turn="continue")
TURNS = [
    code("print('x' * 1000)\n1/0"),  # cut, with an error
    "hm",
    "<code>\n</code>",
    "so <answer>42</answer>",
]


def of(rules, known=True, reward="paper"):
    return RecordedRules(rules, known, reward)


def changed(transcript, span=None, **values):
    if span is None:
        return dataclasses.replace(transcript, **values)
    spans = list(transcript.spans)
    spans[span] = dataclasses.replace(spans[span], **values)
    return dataclasses.replace(transcript, spans=tuple(spans))


@pytest.fixture(scope="module")
def sound(sandbox):
    return played(sandbox, *TURNS, rules=RULES)


def test_all_invariants_hold_for_an_episode_as_it_was_written(sound):
    assert sound.stop_reason is StopReason.ANSWERED
    for transcript in (sound, with_ids(sound)):
        assert check_episode(transcript, of(RULES)) == []
        assert check_episode(transcript, of(RULES, known=False, reward=None)) == []


def test_all_invariants_hold_for_the_golden_episodes():
    """They have both protocols, token ids, faults, and every stop reason."""
    lines = (ROOT / "tests" / "golden" / "episodes.jsonl").read_text().splitlines()
    for line in lines:
        record = json.loads(line)
        transcript = Transcript.from_json(record["transcript"])
        settings = {k: v for k, v in record["settings"].items() if k in vars(Rules())}
        own = {"interpreter": transcript.interpreter, "protocol": transcript.protocol}
        rules = Rules(**{**settings, **own, "faults": None})
        assert check_episode(transcript, of(rules, reward=None)) == [], line[:200]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"span": 1, "logprobs": (0.0,)}, r"spans: span 1 .model.: each sampled token"),
        ({"span": 7, "text": "so <answer>41</answer>"}, "answer: the record has '42', not '41'"),
        ({"span": 7, "text": "<answer>42</answer> more"}, "turns: span 7: .* 19 of 24 characters"),
        ({"span": 4, "text": "Go on."}, "results: span 4: the text differs"),
        ({"span": 3, "text": code("2")}, "results: span 4: the result of the program is missing"),
        ({"span": 6, "execution": None}, "results: span 6: a notice stands where a result belongs"),
        ({"span": 1, "text": "hm"}, "results: span 2: a result stands where a notice belongs"),
        ({"span": 2, "form": "fenced"}, "turns: span 2: the program's form is plain, not fenced"),
        ({"span": 3, "text": "<answer>42</answer>"}, "mask: span 4: a result stands where a turn"),
        ({"stop_reason": StopReason.CALL_LIMIT}, "the record says call_limit, but the rules end"),
        ({"stop_reason": StopReason.STOPPED}, "stop reason: the record says stopped"),
        ({"reward": -1.0}, "reward: the record has -1.0, but the reward paper is 1.0"),
        ({"reward": None}, "reward: the record has None"),
    ],
)
def test_a_violated_invariant_is_named_with_its_span(sound, change, words):
    found = "\n".join(map(str, check_episode(changed(sound, **change), of(RULES))))
    assert re.search(words, found), found


def test_budgets_are_checked_where_the_record_has_rules_and_the_episode_is_not_a_fork(sound):
    few = dataclasses.replace(RULES, max_calls=1)
    found = list(map(str, check_episode(sound, of(few))))
    assert "budget: 3 calls are more than max_calls=1" in found
    assert "stop reason: span 4: the rules end the episode before this span: call_limit" in found
    fork = changed(sound, parent=Parent(0, 1, "control"))
    assert check_episode(fork, of(few)) == check_episode(sound, of(few, known=False)) == []
    short = dataclasses.replace(RULES, max_tokens=5)
    [found] = check_episode(with_ids(sound), of(short))
    assert "tokens are more than max_tokens=5" in str(found)
