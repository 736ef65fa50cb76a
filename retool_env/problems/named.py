"""Sources by name, as environments and command lines ask for them."""

import inspect
from collections.abc import Callable
from typing import Any

from retool_env.errors import SettingsError, UnknownSetting
from retool_env.problem import ProblemSource
from retool_env.problems.data_sets import aime, dapo, gsm8k, math
from retool_env.problems.json_lines import jsonl
from retool_env.problems.procedural import arithmetic

SOURCES: dict[str, Callable[..., ProblemSource]] = {
    "aime": aime,
    "dapo": dapo,
    "gsm8k": gsm8k,
    "math": math,
    "jsonl": jsonl,
    "arithmetic": arithmetic,
}
"""Each name with the function that makes its source, whose parameters are the settings of the problems.

A set of one's own is entered here, `SOURCES["mine"] = mine`, and environments can then name it: `problems="mine"`.
"""


def load_problems(name: str, **options: Any) -> ProblemSource:
    """Make the source called `name`.

    Args:
        name: One of `SOURCES`.
        **options: What its function takes.

    Raises:
        ValueError: There is no such source.
        TypeError: It takes no such option; the message lists those it takes.
        ProblemsUnavailable: The problems can be found neither on disk nor on the Hub.
    """
    if name not in SOURCES:
        raise SettingsError(f"no source of problems {name!r}; there are {', '.join(SOURCES)}")
    signature = inspect.signature(SOURCES[name])
    unknown = sorted(set(options) - set(signature.parameters))
    if unknown:
        raise UnknownSetting(
            f"unknown setting {', '.join(map(repr, unknown))}: beside those of the episode, {name} "
            f"takes {', '.join(signature.parameters)}"
        )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UnknownSetting(f"{name}: {error}") from None
    return SOURCES[name](**options)
