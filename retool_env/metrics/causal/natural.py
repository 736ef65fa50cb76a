"""Errors of the model's own: the worth of a message, of an error and of its mend.

At a failed call, four arms go on with different results:

| arm      | the model sees                                                             |
|----------|----------------------------------------------------------------------------|
| `keep`   | the call and its error                                                     |
| `drop`   | neither the call nor its result                                            |
| `bare`   | the call, and the word "Error"                                             |
| `mended` | the call, and the result of the run's first later call that ran. A run      |
|          | without such a call shows the right value of the stage, on staged problems |

Other runs without a later call that ran have no arm `mended`. Their prefixes are counted and left
out. So the figures with this arm are upper bounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from retool_env.metrics.causal.continuation import Cells
from retool_env.metrics.causal.figure import CausalFigure, arm_difference, arm_share

ARMS = ("keep", "drop", "bare", "mended")
"""The arms at a failed call."""

_BOUND = (
    " An upper bound: prefixes of runs without a later call that ran are left out, unless the "
    "problem is staged and the stage's right value is known."
)
_FIGURES = {
    "message": (("keep", "bare"), "Value of the message: accuracy of keep minus bare."),
    "error": (("mended", "keep"), "Cost of an error: accuracy of mended minus keep." + _BOUND),
    "mend": (("mended", "drop"), "Gain of a mend: accuracy of mended minus drop." + _BOUND),
    "memory": (("drop", "keep"), "Gain of forgetting an error: accuracy of drop minus keep."),
}


def natural_figures(cells: Cells) -> Iterator[CausalFigure]:
    """The figures of natural errors.

    Args:
        cells: The continuations by prefix and arm.
    """
    chosen = {p: arms for p, arms in cells.items() if any(arm in arms for arm in ARMS)}
    for arm in ARMS:
        yield arm_share(
            f"natural/{arm}",
            chosen,
            arm,
            lambda one: one.right,
            f"Mean over prefixes of the share of right continuations of the arm {arm}.",
            sum(arm not in arms for arms in chosen.values()),
        )
    for name, (arms, definition) in _FIGURES.items():
        omitted = sum(not all(arm in present for arm in arms) for present in chosen.values())
        yield arm_difference(
            f"natural/{name}", chosen, arms, lambda one: one.right, definition, omitted
        )
