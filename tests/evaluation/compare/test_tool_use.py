"""Both runs by use of the tool."""

from __future__ import annotations

from retool_env.evaluation.compare.outcomes import Outcome
from retool_env.evaluation.compare.paired import PairedProblem
from retool_env.evaluation.compare.tool_use import GroupUse, Use, tool_use


def test_episodes_are_counted_by_their_calls():
    first = (
        Outcome("p/0", 0, True, "none", 0, 0),
        Outcome("p/1", 1, True, "error_mended", 3, 2),
        Outcome("p/2", 2, False, "without_error", 1, 0),
        Outcome("p/3", 3, None, "without_error", 5, 0),
    )
    second = (Outcome("p/0", 0, False, "error_not_mended", 1, 1),)
    assert tool_use([PairedProblem(first, second)]) == [
        GroupUse("all", Use(3, 2, 4, 2), Use(1, 0, 1, 1)),
        GroupUse("called", Use(2, 1, 4, 2), Use(1, 0, 1, 1)),
        GroupUse("none", Use(1, 1, 0, 0), Use(0, 0, 0, 0)),
        GroupUse("without_error", Use(1, 0, 1, 0), Use(0, 0, 0, 0)),
        GroupUse("error_mended", Use(1, 1, 3, 2), Use(0, 0, 0, 0)),
        GroupUse("error_not_mended", Use(0, 0, 0, 0), Use(1, 0, 1, 1)),
    ]
