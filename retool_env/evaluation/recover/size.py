"""The size of a design before it runs: episodes, tokens, time and dollars of each protocol."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping

from retool_env.evaluation.cost import Estimate, Price, duration
from retool_env.evaluation.recover.protocols import CONTROL, NATURAL, Design
from retool_env.evaluation.recover.records import ArmKey
from retool_env.rules import Rules


def most_episodes(
    design: Design, arms: Collection[tuple[str, str]], ended: Collection[ArmKey] = ()
) -> dict[str, int]:
    """The most episodes of each protocol that are left to run.

    A parent without the call of its fork, a call that is not eligible for a kind, and a run without
    an error make the real number smaller.

    Args:
        design: The design.
        arms: Protocol and name of each arm of whole episodes.
        ended: The keys of the episodes on record.
    """
    number: Counter[str] = Counter()
    for protocol, _ in arms:
        number[protocol] += len(design.problems) * (
            design.k if protocol == "dose" else design.samples
        )
    parents = len(design.problems) * design.k
    for protocol, count in (("fork", len((CONTROL, *design.kinds))), ("natural", len(NATURAL))):
        if protocol in design.protocols:
            number[protocol] = parents * count * design.m
    number.subtract(Counter(key[0] for key in ended if _asked(design, key)))
    return {protocol: max(count, 0) for protocol, count in number.items()}


def _asked(design: Design, key: ArmKey) -> bool:
    """Whether an episode on record is one of the design's."""
    protocol, _, _, parent, _, sample = key
    if protocol in ("fork", "natural"):
        return sample < design.m and (parent or 0) < design.k
    return sample < (design.k if protocol == "dose" else design.samples)


def size_lines(
    design: Design,
    arms: Mapping[tuple[str, str], Rules],
    rules: Rules,
    turn_tokens: int | None,
    price: Price | None,
    tokens_per_second: float | None,
    ended: Collection[ArmKey] = (),
) -> list[str]:
    """A line for each protocol and one for all: episodes, tokens, time and dollars, at most.

    Args:
        design: The design.
        arms: The rules of each arm of whole episodes.
        rules: The rules of the forks.
        turn_tokens: The most tokens of one turn of an API; `None` for a local model.
        price: Dollars of an API's tokens; `None`: unknown.
        tokens_per_second: The tokens that the model writes in a second, over all episodes at once;
            `None`: unknown, so that the time is left out, as it is without a limit of tokens.
        ended: The keys of the episodes on record.
    """
    estimates = {
        protocol: Estimate.of(design.problems, rules, turn_tokens, count)
        for protocol, count in most_episodes(design, arms, ended).items()
    }
    total = None
    for estimate in estimates.values():
        total = estimate if total is None else _sum(total, estimate)
    assert total is not None  # a design has a protocol
    lines = []
    for name, estimate in {**estimates, "all": total}.items():
        line = f"{name}: {estimate.text(price)}"
        if tokens_per_second is not None and estimate.tokens_limited:
            time = duration(estimate.usage.completion_tokens / tokens_per_second)
            line += f", {time} at {tokens_per_second:g} tokens/s at most"
        lines.append(line)
    return lines


def _sum(one: Estimate, other: Estimate) -> Estimate:
    return dataclasses.replace(
        one,
        episodes=one.episodes + other.episodes,
        turns=one.turns + other.turns,
        usage=one.usage + other.usage,
    )
