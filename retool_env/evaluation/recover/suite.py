"""The frozen suites of `retool recover`: problems, kinds of faults, rates and seeds.

A suite is a manifest, `suites/<name>.json` in this package. Its *offline* part consists of
generated problems, so it needs no data. Its *references* are public data sets: the manifest names
their ids, and the rows come from a file or from the Hub. The hash of a suite covers the manifest,
the offline problems and the texts of faults. It never changes; a changed suite gets another name.
Nobody can freeze a public data set, so each set of problems has a fingerprint: results whose
fingerprints differ are not comparable.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

from retool_env.errors import SettingsError
from retool_env.evaluation.identity import fingerprint
from retool_env.faults import KINDS
from retool_env.faults.kinds import fault_texts
from retool_env.faults.settings import SUITES
from retool_env.problem import Problem
from retool_env.task import make_task

OFFLINE = "offline"
"""The name of the part whose problems are generated."""


@dataclass(frozen=True)
class ProblemSet:
    """Problems of a suite that come from one environment."""

    name: str
    """The name in the manifest."""
    env: str
    """The id of the environment."""
    problems: tuple[Problem, ...]
    """The problems, in order."""
    fingerprint: str
    """SHA-256 of the problems' ids, questions and answers."""


@dataclass(frozen=True)
class Suite:
    """One part of a suite."""

    name: str
    """The name of the suite."""
    part: str
    """The name of the part."""
    hash: str
    """SHA-256 of the whole suite, without its references. It is the same for all parts."""
    sets: tuple[ProblemSet, ...]
    """The sets of problems of this part."""
    seen: tuple[str, ...]
    """The kinds of faults that training may use."""
    held_out: tuple[str, ...]
    """The kinds of faults that training must not use."""
    rates: tuple[float, ...]
    """The fault rates of the protocol *dose*."""
    seed: int
    """The seed of the hashes that choose faults and forks."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of all sets."""
        return tuple(problem for part in self.sets for problem in part.problems)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of faults, in the order of `retool_env.faults.KINDS`."""
        return tuple(kind for kind in KINDS if kind in (*self.seen, *self.held_out))

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each set of problems, by its name."""
        return {part.name: part.fingerprint for part in self.sets}

    def fork_call(self, problem_id: str, sample: int) -> int:
        """See the function `fork_call`.

        Args:
            problem_id: The id of the problem.
            sample: The number of the episode among the episodes of its problem.
        """
        return fork_call(self.name, self.seed, problem_id, sample)


def load_suite(name: str = "v0", part: str = OFFLINE, quick: bool = False) -> Suite:
    """Load one part of a suite.

    Args:
        name: The name of the suite.
        part: `offline`, or the name of a reference: `aime26`, `hmmt-feb26` or `beyondaime`.
        quick: Whether to load only the first problems of each set, as many as the manifest states.

    Raises:
        SettingsError: If the suite or the part is unknown.
        ProblemsUnavailable: If the problems of a reference are neither in a file nor on the Hub.

    Example:
        >>> suite = load_suite("v0", quick=True)
        >>> len(suite.problems), suite.sets[0].name
        (12, 'arithmetic')
    """
    manifest = _manifest(name)
    references = manifest["references"]
    if part != OFFLINE and part not in references:
        known = ", ".join([OFFLINE, *references])
        raise SettingsError(f"unknown part {part!r} of the suite {name}: choose one of {known}")
    entries = manifest["offline"] if part == OFFLINE else {part: references[part]}
    return Suite(
        name,
        part,
        suite_hash(name),
        tuple(_load(set_name, entry, quick) for set_name, entry in entries.items()),
        tuple(manifest["kinds"]["seen"]),
        tuple(manifest["kinds"]["held_out"]),
        tuple(manifest["rates"]),
        manifest["seed"],
    )


def fork_call(suite: str, seed: int, problem_id: str, sample: int) -> int:
    """The number of the call at which an episode is forked, fixed before the episode runs.

    All models are forked at the same calls, in suite v0 from 1 to 4. Each call is half as likely as
    the call before, and the last two are equally likely, since many models call only once or twice.

    Args:
        suite: The name of the suite.
        seed: The seed of the hash.
        problem_id: The id of the problem.
        sample: The number of the episode among the episodes of its problem, from 0.
    """
    first, last = _manifest(suite)["fork_calls"]
    text = repr((suite, "fork", seed, problem_id, sample))
    bits = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    call: int = first
    while call < last and bits & 1:
        call, bits = call + 1, bits >> 1
    return call


@functools.cache
def suite_hash(name: str) -> str:
    """SHA-256 of a suite: its manifest, all its offline problems, and the faults with their texts.

    Raises:
        SettingsError: If the suite is unknown.
    """
    manifest = _manifest(name)
    sets = [_load(part, entry, False) for part, entry in manifest["offline"].items()]
    offline = [part.fingerprint for part in sets]
    kinds = [
        # When suite v0 was frozen, the invented warning was not named as invented.
        [kind.name, kind.sort, kind.persistent, kind.invented and kind.name != "warning"]
        for kind in KINDS.values()
    ]
    content = json.dumps([manifest, offline, kinds, fault_texts()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@functools.cache
def _manifest(name: str) -> dict[str, Any]:
    if name not in SUITES:
        raise SettingsError(f"unknown suite {name!r}: choose one of {', '.join(SUITES)}")
    file = importlib.resources.files(__package__) / "suites" / f"{name}.json"
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return manifest


def _load(name: str, entry: dict[str, Any], quick: bool) -> ProblemSet:
    _, source = make_task(entry["env"], **entry.get("settings", {}))
    count = min(entry["quick"], len(source)) if quick else len(source)
    problems = tuple(source[index] for index in range(count))
    return ProblemSet(name, entry["env"], problems, fingerprint(problems))
