"""Are two answers mathematically equal?

* `notation`: what models and interpreters write, in one notation.
* `answer`: what a text commits to, and the verdicts that need no algebra.
* `grader`: the processes that compare all else, and `is_equivalent`, the question that the reward asks.
* `worker`: one such process, which runs math-verify.

The invariant: the verdict is `False` unless the answer commits to one value and that value is the gold one. Whatever is
empty, malformed, ambiguous, too long, or too slow is wrong, never an error.
"""

from retool_env.grading.answer import MAX_CHARS, boxed_spans, extract_boxed
from retool_env.grading.grader import (
    Grader,
    GraderUnavailable,
    is_equivalent,
    is_equivalent_async,
    is_value,
)

__all__ = [
    "MAX_CHARS",
    "Grader",
    "GraderUnavailable",
    "boxed_spans",
    "extract_boxed",
    "is_equivalent",
    "is_equivalent_async",
    "is_value",
]
