"""Causal figures of recovery: what a fault, a message or the offer of the tool changes.

All figures rest on transcripts alone. A fork names its parent, its call and its arm
(`Transcript.parent`); the arms of whole episodes are given apart. `docs/evaluation/recovery.md`
defines each figure.
"""

from retool_env.metrics.causal.comparison import Comparison, compare_models
from retool_env.metrics.causal.continuation import Continuation, by_prefix, read_continuations
from retool_env.metrics.causal.dose import dose_figures
from retool_env.metrics.causal.figure import CausalFigure
from retool_env.metrics.causal.forks import fork_figures
from retool_env.metrics.causal.frequency import frequency_figures

__all__ = [
    "CausalFigure",
    "Comparison",
    "Continuation",
    "by_prefix",
    "compare_models",
    "dose_figures",
    "fork_figures",
    "frequency_figures",
    "read_continuations",
]
