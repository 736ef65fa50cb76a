"""Objective: the parts of an algorithm that decide its loss, learned without a training.

The algorithms without a critic call `grpo.train` with the parts in which they differ from GRPO.
Inside `asked`, `grpo.train` hands these parts over and trains nothing, so that a replay can compute
advantages and losses of recorded episodes as the algorithm itself would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.base.run import dry_run
from agents.base.settings import SettingsError
from retool_env.training.advantages import Advantages, Normalisation
from retool_env.transcript import Transcript

Bonus = Callable[[Transcript, int], float]
"""Computes the bonus on an episode's reward, from its transcript and its token budget."""


@dataclass(frozen=True)
class Objective:
    """The parts of an algorithm that decide its loss; see `grpo.train`."""

    settings: Any
    """The settings of the algorithm, of a class derived from `grpo.Settings`."""
    advantages: Advantages
    """The hook that makes the advantages."""
    normalise: Normalisation | None
    """The hook that changes these advantages; `None`: they stay as they are."""
    bonus: Bonus | None
    """Computes the bonus on the environment's reward; `None`: there is no bonus."""
    arguments: Mapping[str, Any]
    """Further fields of TRL's `GRPOConfig`."""


class _Offered(Exception):
    """Carries the objective of an algorithm out of its function `train`."""


_asking = ContextVar("asking", default=False)


def offer(objective: Objective) -> None:
    """Hand over the objective, if it was asked for: then the call does not return."""
    if _asking.get():
        raise _Offered(objective)


def objective_of(algorithm: Any, settings: Any) -> Objective:
    """The objective of an algorithm that is built on `grpo.train`.

    Args:
        algorithm: The algorithm.
        settings: The settings of the algorithm.

    Raises:
        SettingsError: If a setting is wrong, or the algorithm does not call `grpo.train`.
    """
    token = _asking.set(True)
    try:
        with dry_run():  # an algorithm of another kind ends before it starts
            algorithm.train(settings, Path(), False)
    except _Offered as offered:
        return offered.args[0]
    finally:
        _asking.reset(token)
    raise SettingsError(
        f"{algorithm.__name__} is not built on grpo.train, so its loss can't be computed anew"
    )
