"""Balance: the episodes of a step, divided into passes that take the ranks equally long.

In each pass every rank computes one pack of episodes, and all ranks wait for the slowest: with
FSDP2 they gather each layer together. So the step takes the sum, over its passes, of the slowest
rank's cost. `plan` keeps this sum small under a budget of tokens for each pack. It makes several
plans and returns the best:

- The differencing method of Karmarkar and Karp (1982) divides all episodes into packs of equal
  cost. It does not know the budget, so some of its packs may be too long.
- First fit decreasing fills packs up to the budget. Packs of similar cost form a pass. Inside each
  pass, differencing then divides the episodes among the ranks.

`plan` is a function of its arguments alone, so that all ranks make the same plan without messages.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

Cost = Callable[[int], float]
"""Computes the cost of an episode from its number of tokens."""
Pack = list[int]
"""The indices of the episodes that a rank computes in one pass."""

QUADRATIC = 1e-5
"""The default cost of attention, relative to the other cost of a token, for each earlier token. A
32B model of Qwen2.5 has this ratio: 4 * layers * width / 2 over 2 * parameters."""


def episode_cost(tokens: int) -> float:
    """The default cost of an episode: `T + QUADRATIC * T ** 2`."""
    return tokens + QUADRATIC * tokens * tokens


def plan(
    lengths: Sequence[int], ranks: int, budget: int, cost: Cost | None = None
) -> list[list[Pack]]:
    """Divide episodes among the passes of ranks.

    An episode that is longer than the budget has a pack of its own. Every other pack has at most
    `budget` tokens.

    Args:
        lengths: The number of tokens of each episode.
        ranks: The number of ranks.
        budget: The largest number of tokens of a pack.
        cost: The cost of an episode; `None`: `episode_cost`.

    Returns:
        For each rank, its packs in the order of the passes. All ranks have equally many packs, and
        a pack may be empty. The most expensive pass comes first. Each episode is in one pack.

    Raises:
        ValueError: If the number of ranks or the budget is below 1.
    """
    if ranks < 1 or budget < 1:
        raise ValueError(f"ranks={ranks} and budget={budget} must be at least 1")
    costs = [(cost or episode_cost)(length) for length in lengths]
    filled = _in_passes(_first_fit(lengths, budget), ranks, costs)
    least = max(1, math.ceil(sum(lengths) / (ranks * budget)))
    plans = [[_evened(packs, lengths, costs, budget) for packs in filled]]
    for passes in range(least, max(least + 1, len(filled)) + 1):
        packs = _differenced(range(len(lengths)), costs, passes * ranks)
        if all(_fits(pack, lengths, budget) for pack in packs):
            plans.append(_in_passes(packs, ranks, costs))
    best = min(plans, key=lambda passes: (slowest(passes, costs), len(passes)))
    return [list(packs) for packs in zip(*best, strict=True)]


def slowest(passes: Sequence[Sequence[Pack]], costs: Sequence[float]) -> float:
    """The sum, over passes, of the cost of the most expensive pack.

    Args:
        passes: For each pass, the packs of all ranks.
        costs: The cost of each episode.
    """
    return sum(max(_sum(pack, costs) for pack in packs) for packs in passes)


def _sum(pack: Pack, values: Sequence[float]) -> float:
    return sum(values[episode] for episode in pack)


def _fits(pack: Pack, lengths: Sequence[int], budget: int) -> bool:
    return len(pack) < 2 or _sum(pack, lengths) <= budget


def _first_fit(lengths: Sequence[int], budget: int) -> list[Pack]:
    """Put each episode, the longest first, into the first pack with room."""
    packs: list[Pack] = []
    room: list[int] = []
    for episode in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = lengths[episode]
        place = next((i for i, left in enumerate(room) if size <= left), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(budget)
        packs[place].append(episode)
        room[place] -= size
    return packs


def _in_passes(packs: Sequence[Pack], ranks: int, costs: Sequence[float]) -> list[list[Pack]]:
    """Put packs of similar cost into one pass, the most expensive first."""
    ordered = sorted(packs, key=lambda pack: -_sum(pack, costs))
    passes = max(1, -(-len(ordered) // ranks))
    ordered += [[] for _ in range(passes * ranks - len(ordered))]
    return [ordered[i * ranks : (i + 1) * ranks] for i in range(passes)]


def _evened(
    packs: list[Pack], lengths: Sequence[int], costs: Sequence[float], budget: int
) -> list[Pack]:
    """Divide the episodes of one pass anew among its packs, if the budget allows the result."""
    anew = _differenced([i for pack in packs for i in pack], costs, len(packs))
    return anew if all(_fits(pack, lengths, budget) for pack in anew) else packs


def _differenced(episodes: Sequence[int], costs: Sequence[float], packs: int) -> list[Pack]:
    """Divide episodes into packs of similar cost, by the differencing method.

    A partial division is a list of packs, the most expensive first, with costs relative to its
    cheapest pack. Packs that are still empty are left out. The two divisions with the largest
    differences are joined, the most expensive pack of one with the cheapest pack of the other.
    """
    divisions = [(-costs[i], number, [(costs[i], [i])]) for number, i in enumerate(episodes)]
    heapq.heapify(divisions)
    number = len(divisions)
    while len(divisions) > 1:
        one, other = heapq.heappop(divisions)[2], heapq.heappop(divisions)[2]
        alone = max(0, packs - len(other))
        joined = one[:alone] + other[: max(0, packs - len(one))]
        pairs = zip(one[alone:], reversed(other[max(0, packs - len(one)) :]), strict=True)
        joined += [(a + b, [*first, *second]) for (a, first), (b, second) in pairs]
        joined.sort(key=lambda pack: -pack[0])
        low = joined[-1][0] if len(joined) == packs else 0.0
        joined = [(value - low, pack) for value, pack in joined]
        heapq.heappush(divisions, (-joined[0][0], number, joined))
        number += 1
    made = [pack for _, pack in divisions[0][2]] if divisions else []
    return made + [[] for _ in range(packs - len(made))]
