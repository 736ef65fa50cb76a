"""Problem, and the interface of a problem source."""

import difflib
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from retool_env.errors import DataError
from retool_env.errors import ProblemsUnavailable as ProblemsUnavailable


class Metadata(Mapping[str, str | int]):
    """An immutable mapping that can be hashed and, unlike `MappingProxyType`, pickled."""

    __slots__ = ("_pairs",)

    _pairs: tuple[tuple[str, str | int], ...]

    def __init__(self, values: Mapping[str, str | int] | Iterable[tuple[str, str | int]] = ()):
        pairs = tuple(sorted(dict(values).items()))
        for key, value in pairs:
            if not isinstance(key, str) or not isinstance(value, str | int):
                raise TypeError(
                    f"metadata must hold text and integers by name, not {key!r}: {value!r}"
                )
        object.__setattr__(self, "_pairs", pairs)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("metadata is immutable")

    def __getitem__(self, key: str) -> str | int:
        return dict(self._pairs)[key]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Metadata, (self._pairs,)

    def __repr__(self) -> str:
        return f"Metadata({dict(self._pairs)!r})"


@dataclass(frozen=True)
class Problem:
    """One question and its reference answer; compared by value, and hashable."""

    id: str
    """The name of the problem, unique among all sources and equal in every run: `aime/2024/0`."""
    question: str
    """The bare question, without instructions on how to answer."""
    answer: str
    """The reference answer, as text or LaTeX: `42`, `\\frac{1}{2}`."""
    metadata: Mapping[str, str | int] = Metadata()
    """Further facts, such as `level`; stored as an immutable copy."""

    def __post_init__(self) -> None:
        for name in ("id", "question", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"a problem's {name} must be text, not {value!r}")
            if not value.strip():
                raise DataError(f"a problem's {name} must not be empty (id {self.id!r})")
        object.__setattr__(self, "metadata", Metadata(self.metadata))


@runtime_checkable
class ProblemSource(Protocol):
    """A sequence of problems with a fixed length: all that an environment needs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Problem:
        """The problem at an index; negative indices count from the end.

        Raises:
            IndexError: If the index is out of range, which also ends an iteration.
        """

    def get(self, problem_id: str) -> Problem:
        """The problem with an id.

        Raises:
            KeyError: If no problem has this id; the message names the nearest id.
        """


class ProblemList:
    """Problems held in memory.

    Args:
        problems: The problems, in order.
        omitted: Number of rows of the data set that were left out, by reason.

    Raises:
        ValueError: If the problems are empty, or two problems have the same id.
    """

    def __init__(
        self, problems: Iterable[Problem], omitted: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self._problems = tuple(problems)
        self._omitted = {str(reason): count for reason, count in omitted.items()}
        self._by_id = {problem.id: problem for problem in self._problems}
        if not self._problems:
            raise DataError("a source needs at least one problem")
        if len(self._by_id) < len(self._problems):
            repeated, _ = Counter(problem.id for problem in self._problems).most_common(1)[0]
            raise DataError(f"two problems have the id {repeated!r}: ids must be unique")

    @property
    def omitted(self) -> dict[str, int]:
        """Number of rows of the data set that were left out, by reason: `{"no answer": 2}`."""
        return dict(self._omitted)

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index: int) -> Problem:
        return self._problems[operator.index(index)]

    def get(self, problem_id: str) -> Problem:
        """The problem with an id; raises `KeyError` if no problem has this id."""
        if (problem := self._by_id.get(problem_id)) is None:
            raise unknown_id(problem_id, self._by_id)
        return problem

    def __repr__(self) -> str:
        return f"<{len(self)} problems, {self[0].id} to {self[-1].id}>"


def unknown_id(problem_id: object, known: Iterable[str]) -> KeyError:
    """The error for an unknown id; the message names the nearest known id."""
    nearest = difflib.get_close_matches(str(problem_id), known, n=1, cutoff=0.0)
    return KeyError(f"no problem has the id {problem_id!r}; the nearest is {nearest[0]!r}")
