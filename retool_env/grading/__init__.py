"""Grading: are two answers mathematically equal?

* `notation`: rewrites the output of models and interpreters as LaTeX.
* `answer`: finds the values that a text commits to, and gives the verdicts that need no algebra.
* `grader`: holds the worker processes, and `is_equivalent`, which the reward calls.
* `worker`: the code of one worker process, which compares expressions with math-verify.

The invariant: the verdict is `False` unless the answer commits to one value, and this value equals
the gold value. An answer that is empty, malformed, ambiguous, long beyond the limits or slow to
evaluate is wrong. It never raises an error.
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
