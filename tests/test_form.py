"""The form of the code: short modules, and few unchecked types, each with a reason."""

import ast
import re
import subprocess
import sys

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


def _has_code(path):
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return any(isinstance(node, kinds) for node in ast.parse(path.read_text("utf-8")).body)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_test_module_of_its_name(path):
    """Modules that define nothing, such as an old name of another module, need none."""
    if path.stem.startswith("__") or not _has_code(path):
        return
    location = path.relative_to(ROOT)
    if location.parts[0] == "retool_env":
        location = location.relative_to("retool_env")
    assert (ROOT / "tests" / location).with_name(f"test_{path.name}").is_file()


def test_the_english_of_the_project_has_no_banned_form():
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "english.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
