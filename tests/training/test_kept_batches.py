"""A batch is kept as it was sampled, and a damaged or foreign one is never trained on."""

from __future__ import annotations

import dataclasses
import errno
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.errors import SettingsError
from retool_env.execution import Execution, Outcome
from retool_env.problem import Problem
from retool_env.training import kept_batches
from retool_env.training.kept_batches import KeptBatch, KeptBatches, begun_batches
from retool_env.training.step import Step
from retool_env.transcript import Span, StopReason, Transcript


def transcript(problem, tokens=(5, 6), logprobs=(-0.5, -0.25), **more):
    spans = (
        Span("prompt", "2 * 7?", (1, 2, 3)),
        Span("model", "<code>π</code>", tokens, logprobs, weight_version=3, seconds=0.5),
        Span("env", "14\n", (9,), execution=Execution(Outcome.OK, "14\n")),
    )
    values = {"stop_reason": StopReason.ANSWERED, "reward": -1.0, "correct": False}
    values |= {"answer": "7", "trained_version": 4, **more}
    return Transcript(Problem(problem, "2 * 7?", "14"), spans, **values)


def request(batch=1, number=4, until=8, rank=0, processes=1, prompts="ab", resumed=False):
    accelerator = SimpleNamespace(
        process_index=rank, num_processes=processes, is_main_process=rank == 0
    )
    return Step(
        number=number,
        batch=batch,
        prompts=[name for name in prompts for _ in range(2)],
        group=2,
        model=None,
        accelerator=accelerator,
        temperature=1.0,
        eos_token_ids=[0],
        log=print,
        until=until,
        resumed=resumed,
    )


def kept(problems="ab", **more):
    groups = [[transcript(name, **more), transcript(name, (7,), (-1.0,))] for name in problems]
    figures = [("rollout/seconds", 1.5), ("env/deadline_cut", 0)]
    return KeptBatch(groups, [transcript("c")], figures, [*problems])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_batch_comes_back_as_it_was_sampled(tmp_path):
    batches, batch = KeptBatches(tmp_path / "batches", lambda: 0), kept()
    assert batches.load(request()) is None
    batches.save(request(), batch)
    assert names(tmp_path / "batches") == ["batch-1.4-8.0-of-1.safetensors"]
    again = KeptBatches(tmp_path / "batches", lambda: 0).load(request())
    assert again.groups == batch.groups and again.figures == batch.figures
    assert [t.problem.id for t in again.others] == ["c"] and again.others[0].calls
    assert again.groups[0][0].spans[1].seconds == 0.5
    assert batches.found_by_all([1, 2], request(batch=0)) == {1}


@given(
    st.lists(
        st.tuples(st.integers(0, 2**31 - 1), st.floats(-800.0, 0.0, allow_nan=False)), max_size=8
    )
)
def test_every_id_and_every_log_prob_comes_back(tmp_path_factory, tokens):
    batches = KeptBatches(tmp_path_factory.mktemp("batches"), lambda: 0)
    ids, logprobs = tuple(one for one, _ in tokens), tuple(other for _, other in tokens)
    batch = KeptBatch([[transcript("a", ids, logprobs)] * 2], [], [], ["a"])
    batches.save(request(prompts="a"), batch)
    assert batches.load(request(prompts="a")).groups == batch.groups


def test_a_token_takes_about_nine_bytes(tmp_path):
    chance, count = np.random.default_rng(0), 20_000
    ids = tuple(chance.integers(0, 150_000, count).tolist())
    logprobs = tuple(np.float32(-chance.random(count)).tolist())
    words = "".join(f"{word} " for word in chance.integers(0, 3000, count))
    long = transcript("a", ids, logprobs)
    spans = (long.spans[0], dataclasses.replace(long.spans[1], text=words))
    batch = KeptBatch([[dataclasses.replace(long, spans=spans)]], [], [], ["a"])
    KeptBatches(tmp_path, lambda: 0).save(request(prompts="a"), batch)
    [path] = tmp_path.iterdir()
    assert path.stat().st_size / count < 11


def test_a_batch_whose_dull_groups_were_replaced_comes_back(tmp_path):
    batches = KeptBatches(tmp_path, lambda: 0)
    batch = dataclasses.replace(kept("ax"), asked=["a", "b"])
    batches.save(request(), batch)
    assert batches.load(request()).groups == batch.groups
    assert batches.load(request(prompts="ac")) is None


def test_other_problems_are_sampled_anew_unless_the_batch_was_begun(tmp_path):
    batches = KeptBatches(tmp_path, lambda: 0)
    batches.save(request(), kept())
    assert batches.load(request(prompts="ba")) is None
    begun = batches.load(request(prompts="ba", number=6, resumed=True))
    assert [group[0].problem.id for group in begun.groups] == ["a", "b"]


def test_batches_that_no_checkpoint_needs_are_deleted(tmp_path):
    oldest = [0]
    batches = KeptBatches(tmp_path, lambda: oldest[0])
    for batch in range(3):
        batches.save(request(batch, 4 * batch, 4 * batch + 4), kept())
    assert len(names(tmp_path)) == 3
    oldest[0] = 6  # inside the second batch
    batches.save(request(3, 12, 16), kept())
    assert [name[:7] for name in names(tmp_path)] == ["batch-1", "batch-2", "batch-3"]


def test_another_number_of_processes_divides_a_batch_anew_before_its_training(tmp_path):
    for rank, part in enumerate(("ab", "cd")):
        batches = KeptBatches(tmp_path, lambda: 0)
        assert batches.found_by_all([1], request()) == set()
        batches.save(request(rank=rank, processes=2, prompts=part), kept(part))
    for processes, expected in ((1, ["abcd"]), (2, ["ab", "cd"]), (4, ["a", "b", "c", "d"])):
        for rank, part in enumerate(expected):
            found = batches.load(request(rank=rank, processes=processes, prompts=part))
            assert [group[0].problem.id for group in found.groups] == [*part]
            assert len(found.others) == (2 if processes == 1 else processes == 2 or rank < 2)
    begun = {"number": 6, "resumed": True}
    assert batches.load(request(rank=1, processes=2, **begun)).groups[0][0].problem.id == "c"
    assert batches.load(request(prompts="abcd", **begun)) is None
    assert begun_batches(tmp_path, 6, 2) == [4]
    assert begun_batches(tmp_path, 6, 1) == begun_batches(tmp_path, 4, 2) == []
    assert begun_batches(tmp_path, 8, 2) == begun_batches(tmp_path / "none", 6, 2) == []
    batches.save(request(prompts="abcd"), kept("abcd"))  # sampled anew by one process
    assert names(tmp_path) == ["batch-1.4-8.0-of-1.safetensors"]


def test_a_batch_of_which_a_process_was_killed_is_not_used(tmp_path):
    batches = KeptBatches(tmp_path, lambda: 0)
    batches.save(request(rank=0, processes=2), kept())
    assert batches.load(request(rank=0, processes=2)) is None
    assert begun_batches(tmp_path, 6, 2) == []


DAMAGES = pytest.mark.parametrize(
    "damage",
    [lambda text: b"", lambda text: b"\0" * len(text), lambda text: text[:-20]],
    ids=["empty", "zeros", "cut"],
)


@DAMAGES
@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_batch_is_said_set_aside_and_sampled_anew(tmp_path, damage, processes, caplog):
    needed = [0]
    batches = KeptBatches(tmp_path, lambda: needed[0])
    for rank in range(processes):
        batches.save(request(rank=rank, processes=processes), kept())
    *_, path = sorted(tmp_path.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert batches.load(request()) is None
    assert f"{path}: it can't be read" in caplog.text and "sampled anew" in caplog.text
    assert path.with_name(f"{path.name}.damaged") in tmp_path.iterdir()
    assert not batches.found_by_all([1], request())
    batches.save(request(), kept())
    assert batches.load(request()).groups == kept().groups
    needed[0] = 8
    batches.delete_used()
    assert names(tmp_path) == []


@DAMAGES
@pytest.mark.parametrize("kind", ["batch", "old"])
def test_a_damaged_batch_does_not_count_as_begun(tmp_path, damage, kind, caplog):
    """Its transcripts are then kept, as if the batch were missing."""
    batches = KeptBatches(tmp_path, lambda: 0)
    batches.save(request(), kept())
    batches.save_old(request(), np.zeros((1, 1), np.float32), np.ones((1, 1), bool))
    assert begun_batches(tmp_path, 6, 1) == [4]
    [path] = tmp_path.glob(f"{kind}-*")
    path.write_bytes(damage(path.read_bytes()))
    assert begun_batches(tmp_path, 6, 1) == [] and f"{path}: " in caplog.text
    assert batches.load(request(number=6, resumed=True)) is None
    assert [name for name in names(tmp_path) if not name.endswith(".damaged")] == []


def test_a_file_in_place_of_the_folder_leaves_a_run_without_batches(tmp_path, caplog):
    path = tmp_path / "batches"
    path.touch()
    batches = KeptBatches(path, lambda: 0)
    assert begun_batches(path, 6, 1) == []
    batches.save(request(), kept())
    assert "can't be kept" in caplog.text and batches.load(request()) is None


def test_used_batches_that_can_not_be_deleted_are_said_once(tmp_path, monkeypatch, caplog):
    batches = KeptBatches(tmp_path, lambda: 8)
    batches.save(request(), kept())

    def unlink(path, missing_ok=False):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(type(tmp_path), "unlink", unlink)
    batches.delete_used()
    batches.delete_used()
    assert caplog.text.count("can't be deleted") == 1


def test_log_probs_before_the_updates_come_back_at_their_places(tmp_path):
    batches = KeptBatches(tmp_path, lambda: 0)
    logps = np.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]], np.float32)
    mask = np.array([[True, False, True], [False, True, False]])
    with pytest.raises(SettingsError, match=r"old-1.*it is missing"):
        batches.load_old(request(), mask)
    batches.save_old(request(), logps, mask)
    assert batches.load_old(request(), mask).tolist() == [[-1, 0, -3], [0, -5, 0]]
    with pytest.raises(SettingsError, match="other rollouts"):
        batches.load_old(request(), ~mask & mask)


def full_disk(monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_batches.os, "fsync", full)


def test_a_full_disk_leaves_a_run_without_the_batch_and_says_so(tmp_path, monkeypatch, caplog):
    batches = KeptBatches(tmp_path, lambda: 0)
    batches.save(request(prompts="xy"), kept("xy"))  # an earlier start sampled other problems
    batches.save(request(0, 0, 4), kept())
    with monkeypatch.context() as patch:
        full_disk(patch)
        batches.save(request(), kept())
    assert names(tmp_path) == ["batch-0.0-4.0-of-1.safetensors"]
    assert "rollouts of the steps 5 to 8 can't be kept" in caplog.text
    assert "No space left" in caplog.text and "free some room" in caplog.text
    assert batches.load(request(number=6, resumed=True)) is None  # they are sampled anew
    assert begun_batches(tmp_path, 6, 1) == []
    batches.save(request(), kept())
    assert batches.load(request()).groups == kept().groups


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_without_its_log_probs_is_not_gone_on_with(tmp_path, monkeypatch, rank):
    logps, mask = np.zeros((1, 1), np.float32), np.ones((1, 1), bool)
    batches = [KeptBatches(tmp_path, lambda: 0)] * 2
    for each, some in enumerate(batches):
        some.save(request(rank=each, processes=2), kept())
        with monkeypatch.context() as patch:
            if each == rank:
                full_disk(patch)
            some.save_old(request(rank=each, processes=2), logps, mask)
    begun = {"processes": 2, "number": 6, "resumed": True}
    assert [some.load(request(rank=each, **begun)) for each, some in enumerate(batches)] == [
        None
    ] * 2
    assert begun_batches(tmp_path, 6, 2) == []


def test_a_write_that_was_killed_leaves_no_file_for_ever(tmp_path):
    oldest = [0]
    batches = KeptBatches(tmp_path, lambda: oldest[0])
    (tmp_path / "batch-1.4-8.0-of-1.safetensors.part").write_bytes(b"half")
    assert batches.load(request()) is None and not batches.found_by_all([1], request())
    batches.delete_used()
    assert len(names(tmp_path)) == 1  # another process may be writing it
    oldest[0] = 8
    batches.delete_used()
    assert names(tmp_path) == []


def test_moved_places_come_back_and_are_kept_for_a_run_that_goes_on_after_their_batch(tmp_path):
    needed = [4]
    batches = KeptBatches(tmp_path, lambda: needed[0])
    moved = {(2, 0): "late", (3, 1): "later"}
    assert batches.moved(1, request(2)) == {}
    batches.save(request(), kept())
    batches.save_moved(request(), moved)
    assert batches.moved(1, request(2)) == moved and batches.moved(0, request(1)) == {}
    assert batches.load(request()).asked == ["a", "b"]
    needed[0] = 8  # the batch was used up, and the run may go on from its end
    batches.delete_used()
    assert names(tmp_path) == ["moved-1.4-8.0-of-1.safetensors"]
    assert batches.moved(1, request(2)) == moved
    needed[0] = 9
    batches.delete_used()
    assert names(tmp_path) == []


def test_moved_places_are_divided_anew_among_another_number_of_processes(tmp_path):
    batches = KeptBatches(tmp_path, lambda: 0)
    for rank, moved in enumerate([{(2, 0): "a", (2, 1): "b"}, {(2, 1): "c"}]):
        batches.save_moved(request(rank=rank, processes=2, prompts="xy"), moved)
    assert batches.moved(1, request(2, prompts="wxyz")) == {(2, 0): "a", (2, 1): "b", (2, 3): "c"}
    found = [batches.moved(1, request(2, rank=r, processes=4, prompts="x")) for r in range(4)]
    assert found == [{(2, 0): "a"}, {(2, 0): "b"}, {}, {(2, 0): "c"}]


def test_damaged_moved_places_are_refused(tmp_path):
    batches = KeptBatches(tmp_path, lambda: 0)
    batches.save_moved(request(), {(2, 0): "a"})
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"[[", b"[{"))
    with pytest.raises(SettingsError, match=r"moved-1.*can't be read"):
        batches.moved(1, request(2))
