"""The form of the code: short modules, and few unchecked types, each with a reason."""

import re

import pytest
from helpers import ROOT

MODULES = [
    path
    for folder in ("retool_env", "agents", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]
UNCHECKED = re.compile(r"#\s*type:\s*ignore.*")
REASONED = re.compile(r"# type: ignore\[[a-z-]+(?:, [a-z-]+)*\]  # \S.*")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_at_most_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_at_most_40_lines_are_not_checked_for_their_types_each_for_a_reason():
    found = [each for path in MODULES for each in UNCHECKED.findall(path.read_text("utf-8"))]
    assert len(found) <= 40
    assert [each for each in found if not REASONED.fullmatch(each)] == []
