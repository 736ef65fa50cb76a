"""The sources of problems by name, for environments and command lines."""

import inspect
from collections.abc import Callable
from typing import Any

from retool_env.errors import SettingsError, UnknownSetting
from retool_env.problem import ProblemSource
from retool_env.problems.competitions import amo, apex, beyond_aime, brumo, hmmt, olymmath
from retool_env.problems.data_sets import aime, dapo, gsm8k, math, math500
from retool_env.problems.json_lines import jsonl
from retool_env.problems.procedural import arithmetic
from retool_env.problems.staged import staged
from retool_env.problems.words import words

SOURCES: dict[str, Callable[..., ProblemSource]] = {
    source.__name__: source
    for source in (
        *(aime, hmmt, brumo, apex, beyond_aime, amo, olymmath, math500),
        *(dapo, gsm8k, math, jsonl, arithmetic, staged, words),
    )
}
"""The function that makes a source, by name. Its parameters are the settings of the problems.

Add your own source with `SOURCES["mine"] = mine`. An environment then uses it by
`problems="mine"`.
"""


def load_problems(name: str, **options: Any) -> ProblemSource:
    """Makes a source of problems.

    Args:
        name: The name of the source, a key of `SOURCES`.
        **options: The arguments of the function that makes the source.

    Raises:
        ValueError: The name is unknown.
        TypeError: The source does not have such an option. The error text lists its options.
        ProblemsUnavailable: The problems are neither on disk nor on the Hub.
    """
    if name not in SOURCES:
        raise SettingsError(
            f"no source of problems is called {name!r}; the sources are {', '.join(SOURCES)}"
        )
    signature = inspect.signature(SOURCES[name])
    unknown = sorted(set(options) - set(signature.parameters))
    if unknown:
        raise UnknownSetting(
            f"unknown setting {', '.join(map(repr, unknown))}: besides the settings of the "
            f"episode, {name} takes {', '.join(signature.parameters)}"
        )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UnknownSetting(f"{name}: {error}") from None
    return SOURCES[name](**options)
