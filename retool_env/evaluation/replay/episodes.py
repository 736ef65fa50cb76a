"""Episodes of a run, replayed: their programs run anew, and their invariants checked.

As many episodes run at once as the machine has processors, at most eight: with more
programs at once, each would have less processor time, and some would run into their time limits.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from retool_env.errors import SettingsError
from retool_env.evaluation.recorded_rules import RecordedRules, rules_of_episode
from retool_env.evaluation.replay.checks import Violation, check_episode
from retool_env.evaluation.replay.programs import Replayed, replay_programs
from retool_env.evaluation.runs import Run
from retool_env.execution import Sandbox
from retool_env.interpreter import open_sandbox
from retool_env.transcript import Transcript

WORKERS = min(8, os.cpu_count() or 1)
"""The number of episodes that run at once."""


@dataclass(frozen=True)
class Recorded:
    """An episode of a run, with its rules."""

    address: str
    """The address of the episode."""
    transcript: Transcript
    """The episode."""
    rules: RecordedRules
    """Its rules."""


@dataclass(frozen=True)
class EpisodeReplay:
    """The replay of one episode."""

    recorded: Recorded
    """The episode."""
    violations: list[Violation]
    """The violated invariants of its record."""
    programs: list[Replayed] = field(default_factory=list)
    """The programs that ran anew."""


def recorded_episodes(
    run: Run,
    addresses: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    tokens: bool = True,
) -> Iterator[Recorded]:
    """Yields episodes of a run with their rules.

    Args:
        run: The run.
        addresses: The addresses of the episodes; empty: all.
        settings: Settings that replace the recorded ones.
        limit: The largest number of episodes; `None`: no limit.
        tokens: Whether token ids and log-probs are kept.

    Raises:
        SettingsError: The run has no episode, or not the episode of an address.
        DataError: A record is damaged.
    """
    missing, found = set(addresses), 0
    episodes = run.episodes(tokens, missing.copy() or None)
    for place, transcript in itertools.islice(episodes, limit):
        missing.discard(place.address)
        found += 1
        rules = rules_of_episode(run, transcript, place.step, settings)
        yield Recorded(place.address, transcript, rules)
    if missing and (limit is None or found < limit):
        run.episode(min(missing))  # its error names the address
    if not found:
        raise SettingsError(f"{run.path} holds no episode yet")


def replay(episodes: Iterator[Recorded], sandbox: str | None) -> Iterator[EpisodeReplay]:
    """Replays episodes, in their order.

    Args:
        episodes: The episodes.
        sandbox: The name or the URLs of the sandbox that runs the programs; `None`: programs do not
            run.

    Raises:
        SandboxUnavailable: The sandbox can't work here, or lacks the sessions of an episode.
    """
    opened: Sandbox | None = None

    def one(recorded: Recorded) -> EpisodeReplay:
        violations = check_episode(recorded.transcript, recorded.rules)
        if opened is None or not recorded.rules.rules.interpreter:
            return EpisodeReplay(recorded, violations)
        ran = replay_programs(recorded.transcript, recorded.rules.rules, opened)
        return EpisodeReplay(recorded, violations, list(ran))

    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            for some in itertools.batched(episodes, 4 * WORKERS):
                first = next((e for e in some if e.rules.rules.interpreter), None)
                if opened is None and sandbox is not None and first is not None:
                    opened = open_sandbox(sandbox, first.rules.rules)
                yield from pool.map(one, some)
    finally:
        if opened is not None:
            opened.close()
