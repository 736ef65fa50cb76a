"""Rows: the trained tokens of each episode, in the form that TRL's `rollout_func` returns.

The module also makes the data set of problem ids that TRL passes to the `rollout_func`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from retool_env.problem import ProblemSource
from retool_env.protocol.turn import TurnKind
from retool_env.transcript import StopReason, Transcript

ResampleBy = Literal["accuracy", "reward"]
"""The quantity that must differ within a group, or dynamic sampling replaces the group."""


def is_trainable(transcript: Transcript) -> bool:
    """Whether an episode may be trained on: it is scored and was not cut from outside.

    An episode that a deadline cut may be right so far, and slow only because of the sandbox. So its
    score stays in the records, but it is not trained on.
    """
    return transcript.scored and transcript.stop_reason is not StopReason.CANCELLED


def has_void_turn(transcript: Transcript) -> bool:
    """Whether a turn of an episode is neither code nor an answer."""
    return any(turn.kind is TurnKind.VOID for turn in transcript.turns)


BUDGETS = (StopReason.TOKEN_BUDGET, StopReason.CHARACTER_BUDGET, StopReason.TIME_BUDGET)
"""The ends of episodes that used up a budget."""


def is_overlong(transcript: Transcript) -> bool:
    """Whether an episode ended at a budget of tokens, characters or time."""
    return transcript.stop_reason in BUDGETS


def teaches(group: Sequence[Transcript], by: ResampleBy) -> bool:
    """Whether a group teaches something: its episodes differ in the quantity that `by` names.

    Episodes that are not trained on don't count.
    """
    trainable = filter(is_trainable, group)
    return len({bool(t.correct) if by == "accuracy" else t.reward for t in trainable}) > 1


def training_rows(
    transcripts: Sequence[Transcript],
    eos_token_ids: Sequence[int],
    mask_void: bool = False,
    mask_overlong: bool = False,
) -> dict[str, list[Any]]:
    """The rows that a `rollout_func` returns, one a transcript, in order.

    The row of an episode that ended by its own rules ends with an end-of-sequence token: the token
    that the model sampled or else an appended token with mask 0. So TRL counts the
    same episodes as truncated as the environment does. An episode that must not be trained on (an
    infrastructure failure, or a cut by a deadline) becomes a single masked token. Its reward is
    `None`, so it enters neither its group's mean nor a gradient, and `EngineGRPOTrainer` does not
    count it in the number of rows by which a loss is divided.

    Args:
        transcripts: Finished episodes.
        eos_token_ids: Ids of the tokens that end a sequence; the first of them is appended.
        mask_void: Whether episodes with a void turn are masked as a whole (SimpleTIR, arXiv
            2509.02479, section 3.3). Their rewards still count in their group's mean; losses do not
            count their rows.
        mask_overlong: Whether episodes that ended at a budget are masked in the same way
            (overlong filtering, DAPO, arXiv 2503.14476, section 3.4).

    Returns:
        `prompt_ids`, `completion_ids`, `logprobs` (0.0 where the mask is 0), `env_mask` (1 on
        tokens that the model sampled) and `transcript`, each with `len(transcripts)` entries.
    """
    names = "prompt_ids", "completion_ids", "logprobs", "env_mask", "transcript"
    rows: dict[str, list[Any]] = {name: [] for name in names}
    for transcript in transcripts:
        ids, mask, logprobs = transcript.completion_ids, transcript.loss_mask, transcript.logprobs
        if not is_trainable(transcript):
            ids, mask, logprobs = [], [], []
        ended = transcript.stop_reason is not None and transcript.stop_reason.terminated
        if not ids or (ended and ids[-1] not in eos_token_ids):
            ids, mask, logprobs = [*ids, eos_token_ids[0]], [*mask, 0], [*logprobs, 0.0]
        if (mask_void and has_void_turn(transcript)) or (mask_overlong and is_overlong(transcript)):
            mask, logprobs = [0] * len(ids), [0.0] * len(ids)
        row = transcript.prompt_ids, ids, logprobs, mask, transcript
        for name, value in zip(names, row, strict=True):
            rows[name].append(value)
    return rows


def with_trained_logprobs(transcript: Transcript, logprobs: Sequence[float]) -> Transcript:
    """Add the trainer's log-probs of the sampled tokens to a transcript.

    Args:
        transcript: The transcript. It is returned unchanged if it must not be trained on, since its
            row then holds no token of it.
        logprobs: The trainer's log-probs of the row's completion, shape `(T,)` or longer.

    Returns:
        The transcript, with `Span.trained_logprobs` set on the model's spans.
    """
    if not is_trainable(transcript):
        return transcript
    spans, at = [transcript.spans[0]], 0
    for span in transcript.response:
        end = at + len(span.token_ids or ())
        if span.author == "model":
            trained = tuple(round(float(logprob), 6) for logprob in logprobs[at:end])
            span = dataclasses.replace(span, trained_logprobs=trained)
        spans.append(span)
        at = end
    return dataclasses.replace(transcript, spans=tuple(spans))


def problem_dataset(problems: ProblemSource, size: int, seed: int) -> Any:
    """A data set of problem ids, in random order; an id repeats only after all ids were drawn.

    Its only column, `prompt`, holds the ids. The environment renders the prompts themselves.

    Args:
        problems: The problems to draw from.
        size: Number of rows.
        seed: Seed of the order.

    Raises:
        ValueError: If `problems` is empty.
    """
    from datasets import Dataset

    if not len(problems):
        raise ValueError("the problem source is empty: give it at least one problem")
    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < size:
        order.extend(generator.permutation(len(problems)).tolist())
    drawn = order[:size]
    names = {index: problems[index].id for index in dict.fromkeys(drawn)}  # a draw may be slow
    return Dataset.from_dict({"prompt": [names[index] for index in drawn]})
