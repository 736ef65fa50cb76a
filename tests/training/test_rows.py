"""Rows: their ends, refusals, the trainer's log-probs, and the data set of ids."""

from __future__ import annotations

import dataclasses

import pytest

from agents.models.tiny import make_tokenizer
from retool_env.episode import Episode, Generation
from retool_env.problems import Problem, arithmetic
from retool_env.rules import Rules
from retool_env.training.rows import (
    is_overlong,
    is_trainable,
    problem_dataset,
    training_rows,
    with_trained_logprobs,
)
from retool_env.transcript import StopReason, Transcript

RULES = Rules(max_tokens=120, prompt_template="{query}\n", max_calls=2)


def finish(reason: StopReason, sampled_eos: bool = False) -> Transcript:
    tokenizer = make_tokenizer()
    episode = Episode(Problem(id="p", question="q", answer="1"), RULES, tokenizer)
    ids = tuple(tokenizer.encode("hm")) + ((tokenizer.eos_token_id,) if sampled_eos else ())
    reason_sampled = "eos" if sampled_eos else "length"
    episode.act_ids(Generation(ids, (-1.0,) * len(ids), reason_sampled))
    return dataclasses.replace(episode.transcript, stop_reason=reason)


def test_an_end_of_sequence_is_appended_unless_sampled_and_never_trained():
    eos = make_tokenizer().eos_token_id
    for reason in StopReason:
        rows = training_rows([finish(reason)], [eos])
        unfinished = is_trainable(finish(reason)) and not reason.terminated
        assert is_overlong(finish(reason)) == unfinished
        [ids], [mask], [logprobs] = rows["completion_ids"], rows["env_mask"], rows["logprobs"]
        assert len(ids) == len(mask) == len(logprobs)
        if reason in (StopReason.INFRASTRUCTURE, StopReason.CANCELLED):
            assert (ids, mask) == ([eos], [0])  # nothing of it is trained on
        elif reason.terminated:
            assert ids[-1] == eos and mask == [1, 1, 0]
        else:
            assert ids[-1] != eos and mask == [1, 1]  # what TRL then counts as truncated
    rows = training_rows([finish(StopReason.STOPPED, sampled_eos=True)], [eos])
    assert rows["completion_ids"][0].count(eos) == 1 and rows["env_mask"] == [[1, 1, 1]]


def test_text_transcripts_are_refused():
    episode = Episode(Problem(id="p", question="q", answer="1"), Rules())
    episode.act("hm")
    with pytest.raises(ValueError, match="no token ids"):
        training_rows([episode.transcript], [0])


def test_the_data_set_repeats_no_problem_before_all_were_drawn():
    source = arithmetic(size=10)
    ids = problem_dataset(source, 25, seed=1)["prompt"]
    for start in (0, 10):
        assert sorted(ids[start : start + 10]) == sorted(source[i].id for i in range(10))
    assert list(ids) == list(problem_dataset(source, 25, seed=1)["prompt"])
    assert list(ids) != list(problem_dataset(source, 25, seed=2)["prompt"])


def test_the_trainers_log_probs_stand_at_the_models_tokens():
    episode = finish(StopReason.STOPPED)
    other = with_trained_logprobs(episode, [-0.5, -0.25, 7.0])
    assert other.spans[-1].trained_logprobs == (-0.5, -0.25)
    assert dataclasses.replace(other, spans=episode.spans) == episode
    cut = finish(StopReason.CANCELLED)
    assert with_trained_logprobs(cut, [-0.5, -0.25]) is cut


def test_an_empty_source_gives_no_data_set():
    with pytest.raises(ValueError, match="empty"):
        problem_dataset([], 3, seed=0)
