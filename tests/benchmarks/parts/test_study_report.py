"""The page of the recovery study: from results alone, and honest about what was not run."""

from __future__ import annotations

import re

import pytest
from helpers.studies import TRAINING, evaluation, write

from benchmarks.parts.results import RESULTS
from benchmarks.parts.study_plan import Plan, all_parts
from benchmarks.parts.study_report import (
    HEAD,
    NOT_RUN,
    PICTURE,
    VALUES_PICTURE,
    write_page,
)
from benchmarks.parts.study_values import DISTANCES


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "results").mkdir()
    return Plan(tmp_path / "runs", tmp_path / "results")


def row(page, beginning):
    lines = [line for line in page.read_text().splitlines() if line.startswith(f"| {beginning}")]
    assert len(lines) == 1, lines
    return lines[0]


def test_without_results_every_part_is_said_not_to_be_run(plan, tmp_path):
    page = tmp_path / "page.md"
    write_page(plan, page)
    text = page.read_text()
    own = [part for part in all_parts() if not part.elsewhere]
    for part in own:
        assert f"| {NOT_RUN} | `python -m benchmarks.recovery --part {part.name}` |" in text
    assert "{{" not in text and "done, " not in text
    assert not (tmp_path / PICTURE).exists() and "![" not in text


def test_the_page_shows_figures_changes_and_verdicts(plan, tmp_path):
    write(plan, "cold-0", evaluations={"whole": evaluation(0.2), "end": evaluation(0.2)})
    along = {name: evaluation(0.8) for name in ("whole", "half", "end")}
    write(plan, "grpo-0", evaluations=along, training=TRAINING)
    same = {name: evaluation(0.8) for name in ("whole", "half", "end")}
    write(plan, "faults25-0", evaluations=same, training=TRAINING)
    change = {"mean": 0.1, "low": -0.1, "high": 0.3, "count": 24, "clusters": 20}
    measured = {"noticed": change, "contagion": {**change, "low": 0.05}, "right": change}
    measured["checks_of_true"] = {**change, "mean": 0.29}
    values = {"figures": dict.fromkeys(DISTANCES, measured)}
    write(plan, "values-0", seed=0, values={"cold-0": values, "grpo-0": values})
    page = tmp_path / "page.md"
    write_page(plan, page)
    text = page.read_text()
    assert "done, 2026-11-30, 2 minutes" in row(page, "A | `grpo-0`")
    assert "+50 [" in row(page, "grpo, seed 0 | +0 [") and ": higher" in row(
        page, "grpo, seed 0 | +0 ["
    )
    assert "| 25 % [10, 40] | not shown | – |" in row(page, "cold, seed 0 | 50 %")
    assert "| 1.30 |" in row(page, "cold, seed 0 | 50 %")
    assert ": not shown" in row(page, "0.25, seed 0") and NOT_RUN in row(page, "0.1, seeds 0, 1, 2")
    assert "80 % [70, 90]" in row(page, "grpo, seed 0, 1 to 20")
    assert "40 % [30, 50]" in row(page, "grpo, seed 0, 41 to 60")
    assert "| 24 | 20 | checked: 29 % [" in row(page, "cold-0 | the true one")
    assert "+10 [−10, +30]: not shown | +10 [+5, +30]: higher" in row(page, "cold-0 | one")
    assert r"| **held out** | `busy` \* | explicit | 17 % [" in text
    for kind in ("`always_timeout` | explicit", "`cut` | silent"):
        assert f"| held out, same text as a seen kind | {kind} | – |" in text
    for name in (PICTURE, VALUES_PICTURE):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_no_sentence_around_the_tables_says_undated_what_has_not_been_done():
    _, *sections = HEAD.read_text().split("\n## ")
    assert "{{parts}}" in "".join(sections)
    assert not re.findall(r"ha(?:s|ve)\s+not\s+been.*", "".join(sections))


def test_arms_are_compared_at_the_seeds_that_both_have_and_every_finished_seed_has_a_row(
    plan, tmp_path
):
    for name, fault in (("cold-0", 0.2), ("cold-1", 0.2), ("cold-2", 0.9), ("faults25-1", 0.9)):
        along = {e: evaluation(fault) for e in ("whole", "half", "end")}
        write(plan, name, evaluations=along, training=TRAINING)
    for name in ("grpo-1", "spare-1", "grpo-0"):
        along = {e: evaluation(0.8) for e in ("whole", "half", "end")}
        write(plan, name, evaluations=along, training=TRAINING)
    page = tmp_path / "page.md"
    write_page(plan, page)
    text = page.read_text()
    # Seed 0 of `spare` is missing, seed 1 is done, seed 2 is missing.
    assert "50 %" in row(page, "spare, seed 1 | 50 %")
    assert "spare, seed 1, 41 to 60" in text and text.count("| spare, seeds 0, 2 |") == 6
    assert "+50 [" in row(page, "grpo, seeds 0, 1 | +0 [") and "all seeds" not in text
    assert "| cold, seeds 0, 1, 2 | grpo, seeds 0, 1 | spare, seed 1 | faults25, seed 1 |" in text
    assert "| spare, seed 1 |" + " +0 [–, –]: not shown |" * 3 in text  # against GRPO
    assert "+58 [" in row(page, "faults25, seed 1 | –")  # the change against the cold start
    assert r"| **held out** | `busy` \* | explicit | −6" in text  # the fault effect


@pytest.mark.parametrize(
    ("page", "heading", "least", "end"),
    [
        ("index.md", "Observed and causal recovery", 6, "\n## "),  # of the first table
        ("results/recovery.md", "Answers", 16, "\n## Parts"),  # of any table
    ],
)
def test_figures_that_are_told_are_findings_of_the_study(page, heading, least, end):
    docs = RESULTS.parents[1] / "docs"
    section = (docs / page).read_text().split(f"## {heading}")[1].split("\n## ")[0]
    told = re.findall(r"[−+]\d+\s+\[[−+]\d+,\s+[−+]\d+\]", section)
    told = [" ".join(figure.split()) for figure in told]
    study = (docs / "results" / "recovery.md").read_text()
    tables = study.split("## Findings")[1].split(end)[0]
    cells = {figure: tables.count(f"{figure}: ") for figure in told}
    assert len(told) >= least and all(cells.values()), cells


def test_the_page_of_the_site_is_the_page_of_the_results(tmp_path):
    docs = RESULTS.parents[1] / "docs" / "results" / "recovery.md"
    write_page(Plan(tmp_path, RESULTS / "recovery"), tmp_path / "page.md")
    assert docs.read_text() == (tmp_path / "page.md").read_text()
