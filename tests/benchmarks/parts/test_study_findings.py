"""The first table of the study's page: each figure by seed, and over the seeds."""

from __future__ import annotations

from helpers.studies import TRAINING, evaluation

from benchmarks.parts.study_findings import QUESTIONS, findings_table


def part(fault, **more):
    return {"evaluations": {"whole": evaluation(fault)}, **more}


def row(table, name):
    [found] = [line for line in table if line.startswith(f"| {name}")]
    return [cell.strip() for cell in found.split("|")[2:-1]]


def test_each_question_has_its_seeds_and_their_pool():
    results = {f"cold-{seed}": part(0.2) for seed in (0, 1)}
    results |= {f"grpo-{seed}": part(0.8, training=TRAINING) for seed in (0, 1)}
    results["faults25-1"] = part(0.9, training=TRAINING)
    table = findings_table(results)
    assert len(table) == 2 + len(QUESTIONS) + 2 * 2
    first, second, third, both = row(table, "GRPO against cold start: recovery, held-out kinds")
    assert first == second and first.startswith("+50 [") and first.endswith(": higher")
    assert third == "not run" and both.startswith("+50 [") and both.endswith(": higher")
    faults = row(table, "GRPO under faults, rate 0.25 against GRPO: recovery, held-out kinds")
    assert faults[0] == faults[2] == "not run" and faults[1].startswith("+8 [")
    assert faults[3] == "–"  # one seed has no pool
    explicit = row(table, "GRPO against cold start: – explicit kinds alone")
    assert explicit[3].startswith("+50 [")  # `busy` is explicit, and no silent kind has a prefix
    assert row(table, "GRPO against cold start: – silent kinds alone") == ["–", "–", "not run", "–"]
    assert row(table, "GRPO against cold start: calls |")[0].startswith("+0.90 [")
    again = row(table, "GRPO against cold start: calls again after explicit faults, held-out kinds")
    assert again[3].startswith("+50 [") and again[3].endswith(": higher")
    assert row(table, "GRPO against cold start: – explicit faults, seen kinds")[0] == "–"
    assert row(table, "GRPO against cold start: – the true result")[0] == "+0 [–, –]: not shown"
    observed = row(table, "GRPO, last third against the first: a failed call's next call ran")
    assert observed == ["−40 [−54, −26]: lower"] * 2 + ["not run", "–"]
    assert row(table, "PPO, last third against the first: right")[0] == "not run"
    price = row(table, "GRPO under faults, rate 0.25 against GRPO: accuracy without faults")
    assert price[0] == "not run" and price[1] != "not run"


def test_seeds_that_disagree_show_nothing_together():
    results = {"cold-0": part(0.2), "cold-1": part(0.8)}
    results |= {"grpo-0": part(0.8, training=TRAINING), "grpo-1": part(0.8, training=TRAINING)}
    cells = row(findings_table(results), "GRPO against cold start: recovery, seen kinds")
    assert cells[0].endswith(": higher") and cells[1].endswith(": not shown")
    assert cells[3].endswith(": not shown (1 of 2 seeds)")
    assert findings_table({}) == ["No part of this table has been run."]
