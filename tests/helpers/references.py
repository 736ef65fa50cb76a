"""Reference advantages and losses: in float64, row by row, without padding or masks.

They share no code with the tested functions. Failed episodes are left out of the lists.
"""

from __future__ import annotations

import math
from statistics import fmean, pstdev, stdev

import torch

EPSILON = 1e-4
CAP = 1.1
BOUNDS = 0.95, 1.05
BOUND = 20.0


def centred(groups):
    return [[r - fmean(group) for r in group] if group else [] for group in groups]


def normalised(groups):
    return [
        [(r - fmean(g)) / (stdev(g) + EPSILON) for r in g] if len(g) > 1 else [0.0] * len(g)
        for g in groups
    ]


def leave_one_out(groups):
    def against_others(group, i):
        others = group[:i] + group[i + 1 :]
        return group[i] - fmean(others) if others else 0.0

    return [[against_others(g, i) for i in range(len(g))] for g in groups]


def token_normalised(groups, counts):
    """Advantages that are normalised over tokens.

    Args:
        groups: The advantages of the episodes, by group.
        counts: The numbers of model tokens of the episodes, by group.
    """
    every = [
        a
        for group, numbers in zip(groups, counts, strict=True)
        for a, n in zip(group, numbers, strict=True)
        for _ in range(n)
    ]
    if len(set(every)) < 2:
        return [[0.0] * len(group) for group in groups]
    return [[(a - fmean(every)) / (pstdev(every) + EPSILON) for a in group] for group in groups]


def overlong(length, budget, cache):
    """DAPO's penalty of long responses (arXiv 2503.14476, section 3.4).

    Args:
        length: The number of tokens of the response.
        budget: The token budget.
        cache: The width of the interval below the budget in which the penalty grows.
    """
    if length <= budget - cache:
        return 0.0
    if length <= budget:
        return (budget - cache - length) / cache
    return -1.0


def logps_of(model, transcript):
    """Log-probs of the model's own tokens, shape `(M,)`."""
    ids = torch.tensor(transcript.prompt_ids + transcript.completion_ids)
    logps = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)
    completion = logps.gather(1, ids[1:, None])[:, 0][len(transcript.prompt_ids) - 1 :]
    return completion[torch.tensor(transcript.loss_mask) == 1]


def clipped(ratio, advantage, low, high):
    """The clipped policy loss of each token, shape `(M,)`.

    Args:
        ratio: The probability ratios, shape `(M,)`.
        advantage: The advantage.
        low: The distance of the lower clip from 1.
        high: The distance of the upper clip from 1.
    """
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def loss(name, model, groups, budget, initial=None, kl=0.0, correction=None, far=0.0):
    """The loss of an algorithm with its default settings.

    Args:
        name: The name of the algorithm.
        model: The trained model.
        groups: Groups of transcripts.
        budget: The token budget of an episode.
        initial: The reference model of the KL penalty; `None`: no penalty.
        kl: The weight of the KL penalty. The ratio also weights the penalty (TRL's default, from
            arXiv 2512.02556).
        correction: `None`: the engine's log-probs are the old log-probs. Otherwise the model's own
            log-probs are, with importance weights for the engine mismatch: truncated at `CAP`, or
            with `"geometric"` 0 outside of `BOUNDS`.
        far: A number that is added to the reference log-prob of each episode's first token.
    """
    scored = [[t for t in group if t.reward is not None] for group in groups]
    rewards = [[t.reward for t in group] for group in scored]
    if name == "dapo":
        rewards = [
            [t.reward + overlong(len(t.completion_ids), budget, 0.2 * budget) for t in group]
            for group in scored
        ]
    advantages = {
        "dr_grpo": centred,
        "rloo": leave_one_out,
        "reinforce_pp": centred,
    }.get(name, normalised)(rewards)
    if name == "reinforce_pp":
        counts = [[sum(t.loss_mask) for t in group] for group in scored]
        advantages = token_normalised(advantages, counts)
    pairs = [
        (t, a)
        for group, numbers in zip(scored, advantages, strict=True)
        for t, a in zip(group, numbers, strict=True)
    ]
    rows, tokens = len(pairs), sum(sum(t.loss_mask) for t, _ in pairs)
    total = torch.zeros((), dtype=torch.float64)
    for transcript, advantage in pairs:
        logps = logps_of(model, transcript)
        old = torch.tensor(
            [p for p, mask in zip(transcript.logprobs, transcript.loss_mask, strict=True) if mask],
            dtype=torch.float64,
        )
        if correction is not None:
            apart = [a - b for a, b in zip(logps.tolist(), old.tolist(), strict=True)]
            weights = [min(math.exp(difference), CAP) for difference in apart]
            if correction == "geometric":
                kept = BOUNDS[0] <= math.exp(sum(apart) / len(apart)) <= BOUNDS[1]
                weights = [float(kept)] * len(apart)
            old, advantage = logps.detach(), advantage * torch.tensor(weights, dtype=torch.float64)
        apart = (logps - old).clamp(-BOUND, BOUND)
        ratio = apart.exp()
        if name == "gspo":
            ratio = (apart.sum() / len(logps)).exp()
        penalty = torch.zeros_like(logps)
        if initial is not None:
            with torch.no_grad():
                away = logps_of(initial, transcript)
                away[0] += far
            apart = (away - logps).clamp(max=BOUND)
            penalty = kl * ratio * (apart.exp() - apart - 1)
        if name == "gspo":
            losses = clipped(ratio, advantage, 3e-4, 4e-4) + penalty
            total = total + losses.mean() / rows
        elif name == "cispo":
            losses = -ratio.clamp(max=5.0).detach() * advantage * logps + penalty
            total = total + losses.sum() / tokens
        elif name == "dr_grpo":
            losses = clipped(ratio, advantage, 0.2, 0.2) + penalty
            total = total + losses.sum() / (rows * budget)
        elif name == "rloo":
            losses = clipped(ratio, advantage, 0.2, 0.2) + penalty
            total = total + losses.sum() / rows
        else:
            high = 0.2 if name == "reinforce_pp" else 0.28
            total = total + (clipped(ratio, advantage, 0.2, high) + penalty).sum() / tokens
    return total
