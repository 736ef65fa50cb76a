"""The kinds of faults, and the setting `Rules.faults`."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retool_env.errors import SettingsError
from retool_env.execution import check_whole_number

SUITES = ("v0",)
"""The names of the suites of faults. A suite's texts never change."""

Sort = Literal["explicit", "silent", "placebo"]
"""Whether a fault shows itself by an error, falsifies a result, or changes nothing of it."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    """The name."""
    sort: Sort
    """Whether the fault shows itself."""
    persistent: bool
    """Whether all later calls of the episode fail as well."""
    invented: bool
    """Whether no real result of the sandbox has this text."""
    seen: bool
    """Whether training may use this kind. The other kinds are held out."""


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("timeout", "explicit", persistent=False, invented=False, seen=True),
        Kind("memory", "explicit", persistent=False, invented=False, seen=False),
        Kind("session_ended", "explicit", persistent=False, invented=False, seen=False),
        Kind("try_again", "explicit", persistent=False, invented=True, seen=True),
        Kind("busy", "explicit", persistent=False, invented=True, seen=False),
        Kind("missing_package", "explicit", persistent=True, invented=False, seen=True),
        Kind("always_timeout", "explicit", persistent=True, invented=False, seen=False),
        Kind("gone", "explicit", persistent=True, invented=True, seen=False),
        Kind("wrong_value", "silent", persistent=False, invented=False, seen=True),
        Kind("cut", "silent", persistent=False, invented=False, seen=False),
        Kind("empty", "silent", persistent=False, invented=False, seen=True),
        Kind("stale", "silent", persistent=False, invented=False, seen=False),
        Kind("wrong_function", "silent", persistent=True, invented=False, seen=False),
        Kind("always_cut", "silent", persistent=True, invented=False, seen=True),
        Kind("blank_line", "placebo", persistent=False, invented=False, seen=True),
        Kind("warning", "placebo", persistent=False, invented=True, seen=False),
        Kind("slow", "placebo", persistent=False, invented=False, seen=True),
    )
}
"""All kinds of faults, by name."""


@dataclass(frozen=True)
class Faults:
    """The setting `Rules.faults`: how often the interpreter's results are faulty, and how.

    Raises:
        SettingsError: If a value is wrong. The message names the setting.
    """

    suite: str = "v0"
    """The suite of faults."""
    rate: float = 0.25
    """The share of calls for which a fault is ordered, from 0 to 1. A call that is not eligible for
    the ordered kind runs truly."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """The kinds, of which each fault has one, chosen by the hash."""
    seed: int = 0
    """The seed of the hash."""
    by_rollout: bool = True
    """Whether the rollouts of a problem meet different faults. In training they meet the same:
    otherwise the advantages in a group would measure luck."""

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise SettingsError(
                f"faults.suite must be one of {', '.join(SUITES)}, not {self.suite!r:.60}"
            )
        number = isinstance(self.rate, numbers.Real) and not isinstance(self.rate, bool)
        if not number or not 0 <= self.rate <= 1:
            raise SettingsError(f"faults.rate must be a number from 0 to 1, not {self.rate!r:.60}")
        kinds = self.kinds
        if isinstance(kinds, str) or not isinstance(kinds, list | tuple) or not kinds:
            raise SettingsError(f"faults.kinds must be a list of kinds, not {kinds!r:.60}")
        if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in KINDS]:
            raise SettingsError(
                f"faults.kinds: {unknown[0]!r:.60} is unknown; the kinds are {', '.join(KINDS)}"
            )
        if len(set(kinds)) != len(kinds):
            raise SettingsError("faults.kinds must name each kind once")
        if not isinstance(self.by_rollout, bool):
            raise SettingsError(f"faults.by_rollout must be true or false, not {self.by_rollout!r}")
        object.__setattr__(self, "kinds", tuple(kinds))
        object.__setattr__(self, "seed", check_whole_number("faults.seed", self.seed, least=0))

    @classmethod
    def of(cls, setting: Faults | Mapping[str, Any]) -> Faults:
        """The setting, from a mapping of its fields or unchanged.

        Raises:
            SettingsError: If the setting has another type, or a field is unknown.
        """
        if isinstance(setting, Faults):
            return setting
        if not isinstance(setting, Mapping):
            raise SettingsError(
                "faults must be a mapping such as {'rate': 0.25, 'kinds': ['timeout']}, "
                f"not {setting!r:.60}"
            )
        known = tuple(cls.__dataclass_fields__)
        if unknown := sorted(map(str, set(setting) - set(known))):
            raise SettingsError(f"unknown setting of faults {unknown}; known: {', '.join(known)}")
        return cls(**setting)
