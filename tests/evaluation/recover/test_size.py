"""The size of a design is an upper bound, less the episodes on record."""

from retool_env.evaluation.cost import Price
from retool_env.evaluation.recover.protocols import PROTOCOLS, Design
from retool_env.evaluation.recover.size import most_episodes, size_lines
from retool_env.problem import Problem
from retool_env.rules import Rules

PROBLEMS = [Problem(id=name, question="?", answer="42") for name in "ab"]
DESIGN = Design(PROTOCOLS, PROBLEMS, ("timeout",), (0.0, 0.5), lambda *_: 1, 3, 2, 5)
RULES = Rules(max_tokens=100)
ARMS = DESIGN.whole_arms(RULES, RULES)


def test_episodes_are_counted_for_each_protocol():
    expected = {"dose": 2 * 2 * 3, "frequency": 2 * 3 * 5, "fork": 6 * 2 * 2, "natural": 6 * 4 * 2}
    assert most_episodes(DESIGN, ARMS) == expected
    ended = [job.key for job in DESIGN.whole_jobs(ARMS)]
    assert most_episodes(DESIGN, ARMS, ended) == {**expected, "dose": 0, "frequency": 0}


def test_time_and_dollars_stand_where_they_are_known():
    *_, last = size_lines(DESIGN, ARMS, RULES, None, None, None)
    assert last.startswith("all: 114 episodes") and "11,400 tokens out" in last
    assert "$" not in last and "tokens/s" not in last
    *_, last = size_lines(DESIGN, ARMS, RULES, None, Price(0, 1000), 10)
    assert "$11.40 at most" in last and "19 minutes at 10 tokens/s at most" in last
    *_, last = size_lines(DESIGN, ARMS, RULES, None, Price(0, 0.1), 1e6)
    assert "less than $0.01 at most, less than 1 second at 1e+06 tokens/s at most" in last


def test_no_time_is_promised_without_a_limit_of_tokens():
    rules = Rules(max_tokens=None)
    *_, last = size_lines(DESIGN, DESIGN.whole_arms(rules, rules), rules, None, None, 10)
    assert "tokens/s" not in last and "any number of tokens out" in last
