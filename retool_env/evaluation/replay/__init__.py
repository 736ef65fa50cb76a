"""Replay: recorded episodes, run, checked, rendered and graded anew without a model.

* [`programs`][retool_env.evaluation.replay.programs]: the programs run anew in the sandbox.
"""

from retool_env.evaluation.replay.programs import run_call

__all__ = ["run_call"]
