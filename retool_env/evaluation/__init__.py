"""Evaluation: running a policy on problems, `k` times each, its records, and its figures."""

from retool_env.checkpoint_task import TEMPERATURE, TOP_P
from retool_env.evaluation.records import EpisodeRecord, EvalRecord, read_episodes, read_record
from retool_env.evaluation.results import measured
from retool_env.evaluation.run import evaluate
from retool_env.metrics.tables import COLUMNS, TOOL_USE, table, tool_table

__all__ = [
    "COLUMNS",
    "TEMPERATURE",
    "TOOL_USE",
    "TOP_P",
    "EpisodeRecord",
    "EvalRecord",
    "evaluate",
    "measured",
    "read_episodes",
    "read_record",
    "table",
    "tool_table",
]
