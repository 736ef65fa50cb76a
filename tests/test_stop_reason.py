"""Each end of an episode is a termination or a truncation, never both."""

from retool_env.stop_reason import StopReason


def test_only_the_rules_terminate_an_episode():
    terminations = {"answered", "stopped", "void_turn", "call_limit"}
    assert {reason for reason in StopReason if reason.terminated} == terminations
    truncations = {reason for reason in StopReason if not reason.terminated}
    assert truncations == {
        *("token_budget", "character_budget", "time_budget", "cancelled"),
        "infrastructure_failure",
    }
