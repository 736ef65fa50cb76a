"""Rows: what is trained on of each episode, in the form of TRL's `rollout_func`; and the data set whose prompts it gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from retool_env.problem import ProblemSource
from retool_env.protocol.turn import TurnKind
from retool_env.transcript import StopReason, Transcript


def is_trainable(transcript: Transcript) -> bool:
    """Whether an episode may be trained on: it is scored, and was not cut from outside, by a deadline say.

    What a deadline cuts may be right up to there, and slow because of the sandbox alone, so that its score
    stays in the records.
    """
    return transcript.scored and transcript.stop_reason is not StopReason.CANCELLED


def has_void_turn(transcript: Transcript) -> bool:
    """Whether a turn of an episode is neither code nor an answer."""
    return any(turn.kind is TurnKind.VOID for turn in transcript.turns)


def training_rows(
    transcripts: Sequence[Transcript], eos_token_ids: Sequence[int], mask_void: bool = False
) -> dict[str, list[Any]]:
    """The rows that a `rollout_func` returns, one a transcript, in order.

    An episode that ended by its own rules ends in an end-of-sequence token: the one that the model sampled,
    or else one with mask 0, so that TRL counts as truncated what the environment does. An episode that must
    not be trained on (an infrastructure failure, or one that a deadline cut) becomes one masked token: with a
    reward of `None` it enters neither its group's mean nor any gradient, and `EngineGRPOTrainer` does not
    count it among the rows that losses divide by.

    Args:
        transcripts: Finished episodes.
        eos_token_ids: Every token that ends a sequence; the first is the one appended.
        mask_void: Whether nothing of an episode with a void turn is trained on (SimpleTIR, arXiv 2509.02479,
            section 3.3). Its reward still counts in its group's mean, and it is absent from what losses
            divide by.

    Returns:
        `prompt_ids`, `completion_ids`, `logprobs` (0.0 where the mask is 0), `env_mask` (1: sampled by the
        model) and `transcript`, each of `len(transcripts)` entries.
    """
    rows: dict[str, list[Any]] = {
        key: [] for key in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "transcript")
    }
    for transcript in transcripts:
        ids, mask, logprobs = transcript.completion_ids, transcript.loss_mask, transcript.logprobs
        if not is_trainable(transcript):
            ids, mask, logprobs = [], [], []
        ended = transcript.stop_reason is not None and transcript.stop_reason.terminated
        if not ids or (ended and ids[-1] not in eos_token_ids):
            ids, mask, logprobs = [*ids, eos_token_ids[0]], [*mask, 0], [*logprobs, 0.0]
        if mask_void and has_void_turn(transcript):
            mask, logprobs = [0] * len(ids), [0.0] * len(ids)
        rows["prompt_ids"].append(transcript.prompt_ids)
        rows["completion_ids"].append(ids)
        rows["logprobs"].append(logprobs)
        rows["env_mask"].append(mask)
        rows["transcript"].append(transcript)
    return rows


def with_trained_logprobs(transcript: Transcript, logprobs: Sequence[float]) -> Transcript:
    """A transcript that has, of each token that the model sampled, the log-prob that the trainer found.

    Args:
        transcript: The transcript. If it must not be trained on, its row has none of its tokens, and it stays
            as it is.
        logprobs: Log-probs of its row's completion, shape `(T,)` or longer.

    Returns:
        The transcript with `Span.trained_logprobs`.
    """
    if not is_trainable(transcript):
        return transcript
    spans, at = [transcript.spans[0]], 0
    for span in transcript.response:
        end = at + len(span.token_ids or ())
        if span.author == "model":
            found = tuple(round(float(each), 6) for each in logprobs[at:end])
            span = dataclasses.replace(span, trained_logprobs=found)
        spans.append(span)
        at = end
    return dataclasses.replace(transcript, spans=tuple(spans))


def problem_dataset(problems: ProblemSource, size: int, seed: int) -> Any:
    """A data set of `size` problems, drawn in random order without repeats until all have been drawn.

    Its one column, `prompt`, holds the problem's id: the prompt itself is rendered by the environment.

    Raises:
        ValueError: If there are no problems.
    """
    from datasets import Dataset

    if not len(problems):
        raise ValueError("there is no problem to draw")
    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < size:
        order.extend(generator.permutation(len(problems)).tolist())
    return Dataset.from_dict({"prompt": [problems[i].id for i in order[:size]]})
