"""Figures of episodes: accuracy, use of the interpreter, and recovery from errors."""

from retool_env.metrics.figures import Figure, measure
from retool_env.metrics.intervals import Estimate, Interval
from retool_env.metrics.summary import Summary, code_purposes, summarise, summarise_along
from retool_env.metrics.tables import figures_table, table, tool_table
from retool_env.metrics.verdicts import GradingWarning, grading_warnings

__all__ = [
    "Estimate",
    "Figure",
    "GradingWarning",
    "Interval",
    "Summary",
    "code_purposes",
    "figures_table",
    "grading_warnings",
    "measure",
    "summarise",
    "summarise_along",
    "table",
    "tool_table",
]
