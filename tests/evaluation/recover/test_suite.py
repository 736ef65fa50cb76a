"""The frozen suite v0: its hash, its parts, its references, and the calls of forks."""

import json
import sys
from collections import Counter

import pytest

from retool_env.errors import ProblemsUnavailable, SettingsError
from retool_env.evaluation.identity import fingerprint
from retool_env.evaluation.recover import suite as module
from retool_env.evaluation.recover.suite import fork_call, load_suite, suite_hash
from retool_env.faults import KINDS
from retool_env.problems import DATA_SETS

HASH = "f310df9d87ade991e9c123ca6d5ff66093281291f46849a894b191830dbb3627"
"""A suite never changes: where this hash changes, the change belongs into a new suite."""


def test_the_suite_is_frozen():
    assert suite_hash("v0") == HASH
    assert load_suite("v0").hash == load_suite("v0", quick=True).hash == HASH


def test_the_hash_covers_manifest_problems_and_kinds(monkeypatch):
    manifest = module._manifest("v0")
    hashes = {suite_hash("v0")}

    def changed():
        module.suite_hash.cache_clear()
        hashes.add(suite_hash("v0"))

    with monkeypatch.context() as patch:
        patch.setattr(module, "_manifest", lambda name: {**manifest, "seed": 1})
        changed()
    with monkeypatch.context() as patch:
        patch.setattr(module, "fingerprint", lambda problems: "other")
        changed()
    with monkeypatch.context() as patch:
        patch.setattr(module, "KINDS", {"busy": KINDS["busy"]})
        changed()
    assert len(hashes) == 4
    changed()
    assert len(hashes) == 4


def test_the_offline_part_has_sixty_different_problems_of_stated_levels():
    suite = load_suite("v0", "offline")
    assert [(part.name, len(part.problems)) for part in suite.sets] == [
        ("arithmetic", 24),
        ("staged", 24),
        ("words", 12),
    ]
    assert len({p.question for p in suite.problems}) == len({p.id for p in suite.problems}) == 60
    levels = [Counter(p.metadata["difficulty"] for p in part.problems) for part in suite.sets]
    assert levels[0] == dict.fromkeys((1, 3, 4, 5), 6)
    assert levels[1] == dict.fromkeys((2, 3, 4, 5), 6)
    assert levels[2] == dict.fromkeys((1, 2, 3), 4)
    assert all("/test-" in p.id for p in suite.problems)  # training never sees the test split
    assert suite.fingerprints["words"] == fingerprint(suite.sets[2].problems)
    assert len({p.metadata["story"] for p in suite.sets[2].problems}) == 12


def test_quick_takes_the_first_problems_of_each_set():
    whole, quick = load_suite("v0"), load_suite("v0", quick=True)
    assert len(quick.problems) == 12
    for few, all_ in zip(quick.sets, whole.sets, strict=True):
        assert few.problems == all_.problems[:4] and few.fingerprint != all_.fingerprint


def test_half_of_the_kinds_of_faults_are_seen():
    suite = load_suite("v0")
    assert suite.kinds == tuple(KINDS)
    assert set(suite.seen) == {name for name, kind in KINDS.items() if kind.seen}
    assert set(suite.held_out) == set(KINDS) - set(suite.seen)
    assert abs(len(suite.seen) - len(suite.held_out)) <= 1
    assert suite.rates == (0, 0.1, 0.25, 0.5, 1)


REFERENCES = {"aime26": "aime/2026", "hmmt-feb26": "hmmt/2026-02", "beyondaime": "beyondaime"}


@pytest.mark.parametrize("part", REFERENCES)
def test_a_reference_names_the_set_that_its_id_loads(part, tmp_path, monkeypatch):
    data_set = DATA_SETS[REFERENCES[part]]
    hub = module._manifest("v0")["references"][part]["hub"]
    assert hub == {"repo": data_set.hub.repo, "split": data_set.hub.split}
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))

    def write(answer):
        rows = [{"problem": f"What is {n} times {n}?", "answer": answer * n} for n in range(1, 7)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{data_set.files[0]}.jsonl").write_text(text)

    write(1)
    suite = load_suite("v0", part)
    assert [p.id for p in suite.problems] == [f"{REFERENCES[part]}/{n}" for n in range(6)]
    assert suite.hash == HASH and len(load_suite("v0", part, quick=True).problems) == 4
    assert suite.fingerprints == {part: fingerprint(suite.problems)}
    write(2)  # the data set changes
    assert load_suite("v0", part).fingerprints != suite.fingerprints


def test_unknown_names_and_missing_references(monkeypatch, tmp_path):
    with pytest.raises(SettingsError, match="unknown suite 'v1': choose one of v0"):
        load_suite("v1")
    with pytest.raises(SettingsError, match="offline, aime26, hmmt-feb26, beyondaime"):
        load_suite("v0", "aime25")
    monkeypatch.setenv("RETOOL_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ProblemsUnavailable):
        load_suite("v0", "beyondaime")


def test_forks_begin_at_calls_that_are_fixed_and_evenly_drawn():
    suite = load_suite("v0", quick=True)
    ids = [problem.id for problem in suite.problems]
    drawn = [suite.fork_call(id, sample) for id in ids for sample in range(200)]
    counts = Counter(drawn)
    assert set(counts) == {1, 2, 3, 4}
    # 2,400 draws: a share of 1/2 has the deviation 24.5.
    shares = {1: 1200, 2: 600, 3: 300, 4: 300}
    assert all(abs(counts[call] - count) < 4.5 * 24.5 for call, count in shares.items())
    assert [fork_call("v0", 0, "p", n) for n in range(8)] == FIRST
    assert [fork_call("v0", 1, "p", n) for n in range(8)] != FIRST


FIRST = [2, 2, 1, 1, 2, 2, 4, 2]
"""The calls of the first episodes of the problem `p`. They are the same for every model."""
