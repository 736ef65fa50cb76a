"""Replay: recorded episodes, run, checked and rendered anew without a model.

* [`programs`][retool_env.evaluation.replay.programs]: programs run anew in the sandbox.
* [`checks`][retool_env.evaluation.replay.checks]: the invariants of a record.
* [`rendering`][retool_env.evaluation.replay.rendering]: an episode in another protocol.
"""

from retool_env.evaluation.replay.programs import run_call

__all__ = ["run_call"]
