"""Tool times of TRL's loop and of the engine."""

from benchmarks.parts.tool_time import tool_time


def test_tools_wait_one_after_the_other_in_trls_loop_alone() -> None:
    found = tool_time(4, 0.1)
    trl, coroutine, trainer, alone = found.values()
    assert trl["wall_s"] >= 0.4 and coroutine["wall_s"] >= 0.4
    assert trainer["wall_s"] >= 0.1 and alone["wall_s"] >= 0.1
    assert list(found)[2:] == ["TRL's trainer, our rollout_func", "our engine alone"]
