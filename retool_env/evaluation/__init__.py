"""Evaluation: running a policy on problems, `k` times each, and showing what came of it."""

from retool_env.checkpoint_task import TEMPERATURE, TOP_P
from retool_env.evaluation.run import evaluate
from retool_env.metrics.tables import COLUMNS, TOOL_USE, table, tool_table

__all__ = ["COLUMNS", "TEMPERATURE", "TOOL_USE", "TOP_P", "evaluate", "table", "tool_table"]
