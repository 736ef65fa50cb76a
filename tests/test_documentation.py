"""Each code block of the README and of the site runs as written, or gives a reason not to."""

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.*?) -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)

MOST_NOT_RUN = 4
"""The number of README blocks that may give a reason not to run."""

SECONDS = 240
"""The time limit, in seconds, of all blocks of a page: ten times their usual time."""


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    language: str
    text: str
    reason: str | None
    """The reason why the block does not run; `None` if it runs."""


def blocks_of(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    return [
        Block(found["language"], textwrap.dedent(found["text"]), found["reason"])
        for found in BLOCK.finditer(page.read_text())
    ]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def problems(number: int) -> list[dict[str, str]]:
    return [{"question": f"Compute {n} + {n}.", "answer": str(2 * n)} for n in range(2, number)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone with a trained tiny model and small files of the data sets."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("agents", "benchmarks", "docs", "examples", "retool_env", "tests"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    data = folder / "data"
    data.mkdir()
    splits = [
        f"{name}_{split}" for name in ("gsm8k", "math_levels_3_to_5") for split in ("train", "test")
    ]
    for name in ["aime24", "aime25", "dapo_math_17k", *splits]:
        rows = problems(12)
        if name.startswith("gsm8k"):
            rows = [{**row, "answer": f"It is twice that.\n#### {row['answer']}"} for row in rows]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems(8)))
    quick = ["name=tiny", "traces=60", "epochs=1"]
    train = [sys.executable, "-m", "agents", "sft", "--preset", "tiny", *quick]
    run(train, folder)
    return folder


def run(command: list[str], folder: Path) -> None:
    """Run a command in the workshop; a failure shows its output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RETOOL_DATA": str(folder / "data"),
        "RETOOL_SANDBOX_TOKEN": "a token of the tests",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def runnable(page: Path, language: str) -> list[str]:
    return [b.text for b in blocks_of(page) if b.language == language and not b.reason]


def with_code() -> list[Any]:
    """The pages with blocks to run. A page that samples from models takes half a minute."""
    slow = {"training", "evaluation", "rollouts", "sandbox", "change"}
    slow |= {"faults.md", "installation.md", "ten-minutes.md"}
    return [
        pytest.param(
            page,
            id=name_of(page),
            marks=[pytest.mark.slow] if slow & {*page.parts} else [],
        )
        for page in PAGES
        if runnable(page, "console") or runnable(page, "python")
    ]


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("page", with_code())
def test_the_blocks_of_a_page_run(page, workshop, tmp_path):
    """The commands of a page run first, then its Python blocks, in one namespace."""
    lines = ["set -e"]
    for text in runnable(page, "console"):
        lines += re.findall(r"^\$ ((?:.*\\\n)*.*)", text, re.MULTILINE)
    run(["bash", "-c", "\n".join(lines)], workshop)
    if blocks := runnable(page, "python"):
        script = tmp_path / "page.py"
        script.write_text("\n\n".join(blocks))
        run([sys.executable, str(script)], workshop)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_has_a_language_and_a_reason_is_a_sentence(page):
    for block in blocks_of(page):
        assert block.language, block.text[:80]
        assert block.reason is None or len(block.reason.split()) > 2, block.reason


def test_the_readme_is_one_screen_and_runs():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900 and text.count("\n") <= 120
    assert sum(block.reason is not None for block in blocks_of(ROOT / "README.md")) <= MOST_NOT_RUN


def test_a_formatter_has_changed_no_inclusion():
    """`ruff format` takes the marker of an included file for Python, except between `fmt: off`."""
    assert [name_of(page) for page in PAGES if re.search(r"--8 +<", page.read_text())] == []


def test_the_glossary_is_sorted_and_its_links_have_a_target():
    text = (ROOT / "docs" / "start" / "glossary.md").read_text()
    terms = re.findall(r"^##### (.+)$", text, re.MULTILINE)
    assert terms == sorted(terms, key=str.lower) and len(terms) == len(set(terms)) > 80
    anchors = {re.sub(r"[^\w -]", "", term.lower()).replace(" ", "-") for term in terms}
    assert {link for link in re.findall(r"\]\(#([\w-]+)\)", text)} <= anchors
