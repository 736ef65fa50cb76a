"""The README's table and the tests refer to each other."""

import ast
import re
import runpy
from pathlib import Path

from retool_env import sandbox

FOLDER = Path(__file__).parent


def defined() -> set[str]:
    """The names of the tests in this folder."""
    trees = [ast.parse(path.read_text()) for path in FOLDER.glob("test_*.py")]
    nodes = [node for tree in trees for node in tree.body]
    return {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def listed() -> list[list[str]]:
    """The rows of the first table: threat, mechanism, tests."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    start = lines.index("| threat | mechanism | tests |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_test_is_in_the_table_once() -> None:
    named = [name for row in listed() for name in re.findall(r"`(test_\w+)`", row[2])]
    assert sorted(named) == sorted(defined())


def test_every_threat_has_a_mechanism_and_a_test() -> None:
    for threat, mechanism, tests in listed():
        assert threat and mechanism and "`test_" in tests


def test_there_are_forty_attacks_and_more() -> None:
    assert len(listed()) >= 40


def test_each_text_that_a_mutation_changes_stands_there_once() -> None:
    source = Path(sandbox.__file__).parent
    for mutation in runpy.run_path(str(FOLDER / "mutations.py"))["MUTATIONS"]:
        for file, old, _ in mutation.edits:
            assert (source / file).read_text().count(old) == 1, (mutation.defence, file, old)
