"""Where problems come from.

Inside: `Problem` and the protocol `ProblemSource`; the data sets `aime`,
`dapo`, `gsm8k` and `math`; `jsonl` for a file of one's own; and
`arithmetic`, which makes problems up. `load_problems` finds any of these by name;
`ProblemList` turns any problems into a source.
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
