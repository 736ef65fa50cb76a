"""Which calls of an episode fail, and how."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from retool_env.faults.settings import Faults


class Schedule(Protocol):
    """Orders faults for the calls of one episode."""

    def ordered(self, call: int) -> str | None:
        """The kind that begins at a call; `None` if no fault begins there.

        Args:
            call: The number of the call in its episode, from 1.
        """
        ...


@dataclass(frozen=True)
class Hashed:
    """Faults by a hash of the suite, the seed, the problem, the rollout and the call.

    The hash gives two numbers in [0, 1). The first is compared with the rate, so that a
    higher rate orders all faults of a lower rate and more; the second chooses the kind. In an
    episode, a persistent fault that has begun takes the place of all later orders.
    """

    faults: Faults
    """The setting."""
    problem: str
    """The problem's id."""
    rollout: int
    """The number of the rollout among the rollouts of its problem."""

    def ordered(self, call: int) -> str | None:
        """See `Schedule`."""
        faults = self.faults
        rollout = self.rollout if faults.by_rollout else "all"
        text = repr((faults.suite, faults.seed, self.problem, rollout, call))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if int.from_bytes(digest[:8], "big") / 2**64 >= faults.rate:
            return None
        chosen = int.from_bytes(digest[8:], "big") * len(faults.kinds) >> 64
        return faults.kinds[chosen]


@dataclass(frozen=True)
class At:
    """One fault, at one call: the arm of a fork."""

    call: int
    """The number of the call, from 1."""
    kind: str
    """The kind of the fault."""

    def ordered(self, call: int) -> str | None:
        """See `Schedule`."""
        return self.kind if call == self.call else None
