"""Where problems come from.

Inside: :class:`Problem` and the protocol :class:`ProblemSource`; the data sets :func:`aime`,
:func:`dapo`, :func:`gsm8k` and :func:`math`; :func:`jsonl` for a file of one's own; and
:func:`arithmetic`, which makes problems up. :func:`load_problems` finds any of these by name;
:class:`ProblemList` turns any problems into a source.
"""

from retool_env.problem import Metadata, Problem, ProblemList, ProblemSource, ProblemsUnavailable
from retool_env.problems.data_sets import aime, dapo, gsm8k, math
from retool_env.problems.json_lines import jsonl
from retool_env.problems.named import SOURCES, load_problems
from retool_env.problems.procedural import Arithmetic, arithmetic

__all__ = [
    "SOURCES",
    "Arithmetic",
    "Metadata",
    "Problem",
    "ProblemList",
    "ProblemSource",
    "ProblemsUnavailable",
    "aime",
    "arithmetic",
    "dapo",
    "gsm8k",
    "jsonl",
    "load_problems",
    "math",
]
