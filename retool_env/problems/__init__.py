"""Problems and their sources.

* `Problem` is a question with its reference answer. `ProblemSource` is the protocol of a source.
* `aime`, `dapo`, `gsm8k` and `math` load data sets. `jsonl` loads your own file. `arithmetic`
  generates problems.
* `load_problems` makes any of these sources by name. `ProblemList` turns a list of problems into a
  source.
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
