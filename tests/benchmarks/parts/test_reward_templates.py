"""Reward templates: their number, and that none is a gold."""

from benchmarks.parts.reward_templates import reward_templates, single_golds


def test_templates_are_some_two_hundred_and_no_gold_is_among_them():
    templates, golds = reward_templates(), single_golds()
    assert 200 <= len(templates) == len(set(templates)) <= 220
    assert len(golds) == len(set(golds)) == 100
    assert not set(templates) & set(golds)
    combined = {"1, 2", r"\{1 or 2\}", "x = 1; 2", r"(1 \quad 2)", r"\boxed{1} \boxed{2}"}
    assert combined | {"nan", r"\mathbb{R}"} <= set(templates)
