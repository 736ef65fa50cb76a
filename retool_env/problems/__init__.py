"""Problems and their sources.

* `Problem` is a question with its reference answer. `ProblemSource` is the protocol of a source.
* `aime`, `hmmt`, `brumo`, `apex`, `beyond_aime`, `amo`, `olymmath`, `math500`, `dapo`, `gsm8k` and
  `math` load data sets. `DATA_SETS` describes them. `jsonl` loads your own file. `arithmetic`,
  `staged` and `words` generate problems.
* `load_problems` makes any of these sources by name. `ProblemList` turns a list of problems into a
  source.
"""

from retool_env.problem import Metadata, Problem, ProblemList, ProblemSource, ProblemsUnavailable
from retool_env.problems.catalogue import DATA_SETS, DataSet, published
from retool_env.problems.competitions import amo, apex, beyond_aime, brumo, hmmt, olymmath
from retool_env.problems.data_sets import aime, dapo, gsm8k, math, math500
from retool_env.problems.json_lines import jsonl
from retool_env.problems.named import SOURCES, load_problems
from retool_env.problems.procedural import Arithmetic, arithmetic
from retool_env.problems.staged import Staged, staged
from retool_env.problems.words import Words, words

__all__ = [
    "DATA_SETS",
    "SOURCES",
    "Arithmetic",
    "DataSet",
    "Metadata",
    "Problem",
    "ProblemList",
    "ProblemSource",
    "ProblemsUnavailable",
    "Staged",
    "Words",
    "aime",
    "amo",
    "apex",
    "arithmetic",
    "beyond_aime",
    "brumo",
    "dapo",
    "gsm8k",
    "hmmt",
    "jsonl",
    "load_problems",
    "math",
    "math500",
    "olymmath",
    "published",
    "staged",
    "words",
]
