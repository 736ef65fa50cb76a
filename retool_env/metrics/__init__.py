"""Figures of episodes: how often a model uses its tool, how soon, how well, and whether it recovers."""

from retool_env.metrics.intervals import Estimate, Interval
from retool_env.metrics.summary import Summary, code_purposes, summarise, summarise_along
from retool_env.metrics.tables import table, tool_table

__all__ = [
    "Estimate",
    "Interval",
    "Summary",
    "code_purposes",
    "summarise",
    "summarise_along",
    "table",
    "tool_table",
]
