"""Weights as deltas against the version before."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from retool_env.rollout import weight_deltas as module
from retool_env.rollout import weight_files
from retool_env.rollout.vllm.passing_folder import passing_folder
from retool_env.rollout.weight_deltas import CHAIN, DeltaFiles, MergedWeights, difference
from retool_env.rollout.weight_files import MARK, wait_until_stable
from retool_env.rollout.weights import Inventory, Parts, bits

FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NUMBERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]


def files_of(folder, tensors, dtype="bfloat16"):
    """Files for a model with these tensors."""
    files = DeltaFiles(folder, dtype)
    files._inventory = Inventory.of_tensors(tensors)
    return files


def write(files, name, tensors) -> Path:
    return Path(asyncio.run(files.write(name, tensors, "the model")))


def write_parts(files, name, tensors) -> Path:
    """Write the parts of several processes, each with its own files."""
    parts = Parts(name, len(files))
    for rank, each in enumerate(files):
        each.write_part(parts, tensors, "the model", rank)
    return write(files[0], name, parts)


def merged(folder):
    """The tensors of a version, as a server reads them."""
    wait_until_stable(folder)
    weights = MergedWeights(folder)
    tensors = {name: tensor.clone() for name, tensor in weights}
    weights.check()
    return tensors


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(bits(found[name]), bits(tensor.contiguous()))


def stored(folder):
    """The number of bytes of the tensors in the files of one folder."""
    return sum(t.nbytes for f in folder.glob("*.safetensors") for t in load_file(f).values())


def drawn(kind, shape, draw):
    """A tensor of random bits: infinities, all kinds of NaN and both zeros among them."""
    if kind == torch.bool:
        return torch.randint(0, 2, shape, generator=draw).bool()
    size = torch.tensor([], dtype=kind).element_size()
    data = torch.randint(0, 256, (*shape, size), dtype=torch.uint8, generator=draw)
    return data.view(kind).reshape(shape)


SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FLOATS)),
    st.lists(st.tuples(SHAPES, st.sampled_from([None, *NUMBERS])), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.0, 0.02, 0.3, 1.0]), max_size=5),
    st.integers(1, 3),
    st.sampled_from([1, 2**30]),
    st.integers(0, 2**32),
)
def test_any_number_of_deltas_gives_each_version_bit_by_bit(
    dtype, tensors, shares, ranks, shard, seed
):
    draw = torch.Generator().manual_seed(seed)
    kinds = [(shape, kind or FLOATS[dtype]) for shape, kind in tensors]
    weights = {f"w{i}": drawn(kind, shape, draw) for i, (shape, kind) in enumerate(kinds)}
    with passing_folder(1) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_files, "_SHARD_BYTES", shard)
        files = [files_of(folder, weights, dtype) for _ in range(ranks)]
        for version, share in enumerate([1.0, *shares]):
            for tensor in weights.values():  # in place, as an optimizer changes them
                new = drawn(tensor.dtype, tensor.shape, draw)
                tensor.copy_(
                    torch.where(torch.rand(tensor.shape, generator=draw) < share, new, tensor)
                )
            path = write_parts(files, f"{version}-x", weights)
            files[0].keep(str(path))
            same_bits(merged(path), weights)


@pytest.mark.parametrize("kind", FLOATS.values())
def test_signs_of_zero_and_payloads_of_nan_are_changes(kind):
    old = torch.zeros(64, dtype=kind)
    new = old.clone()
    new[3] = -0.0
    [(places, values), name] = [list(difference("w", old, new).items()), "w"]
    assert places[0] == f"indices:{name}" and places[1].tolist() == [3]
    assert values[1].signbit().all() and values[1].dtype == kind
    old[5], new[5] = float("nan"), float("nan")
    bits(new)[5] += 1  # another NaN
    assert difference("w", old, new)["indices:w"].tolist() == [3, 5]
    assert difference("w", new.clone(), new) == {}
    assert new[5].isnan()


def test_a_tensor_is_whole_where_its_delta_is_not_smaller():
    old, new = torch.zeros(12), torch.zeros(12)
    for changed, keys in ((0, set()), (5, {"indices:w", "values:w"}), (6, {"w"})):
        new[:changed] = 1
        assert difference("w", old, new).keys() == keys
    found = difference("w", None, new)
    assert found.keys() == {"w"} and found["w"].data_ptr() != new.data_ptr()
    halves = torch.zeros(12, dtype=torch.bfloat16)
    new = halves.clone()
    new[:4] = 1  # a place has 4 bytes, and an element 2
    assert difference("w", halves, new).keys() == {"w"}
    new[3] = 0
    assert difference("w", halves, new)["indices:w"].dtype == torch.int32


def changed(weights, number=1):
    """The weights with another value in some places."""
    new = {name: tensor.clone() for name, tensor in weights.items()}
    for place in range(number):
        new["a"].view(-1)[place] += 1
    return new


@pytest.fixture
def weights():
    return {"a": torch.zeros(30, 10), "b": torch.ones(100)}


def test_only_changes_are_written_and_a_chain_ends_when_it_has_the_size_of_the_whole(
    tmp_path, weights
):
    files = files_of(tmp_path, weights)
    sizes, kept = [], []
    for version in range(7):
        path = write(files, f"{version}-x", weights)
        files.keep(str(path))
        same_bits(merged(path), {n: t.bfloat16() for n, t in weights.items()})
        sizes.append(stored(path))
        kept.append(sorted(int(folder.name[0]) for folder in tmp_path.iterdir()))
        weights = changed(weights, 50)
    # 800 bytes are whole, and a delta has 50 * 6 bytes.
    assert sizes == [800, 300, 300, 300, 800, 300, 300]
    assert kept == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4], [4, 5], [4, 5, 6]]
    files.keep("")
    assert not list(tmp_path.iterdir())


def test_an_element_that_gets_an_older_value_again_has_changed(tmp_path, weights):
    files = files_of(tmp_path, weights)
    for version, tensors in enumerate([weights, changed(weights), weights, changed(weights, 2)]):
        path = write(files, f"{version}-x", tensors)
        assert torch.equal(merged(path)["a"].float(), tensors["a"])
        assert stored(path) == [800, 6, 6, 12][version]


def test_a_chain_of_empty_deltas_ends(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(module, "_MOST_DELTAS", 3)
    files = files_of(tmp_path, weights)
    sizes = [stored(write(files, f"{version}-x", weights)) for version in range(6)]
    assert sizes == [800, 0, 0, 0, 0, 800]


def test_the_files_of_older_versions_stay_while_a_server_reads_them(tmp_path, weights):
    files = files_of(tmp_path, weights)
    first = write(files, "0-x", weights)
    second = write(files, "1-x", changed(weights))
    files.keep(str(second))
    with files.reading(str(second)):
        files.refuse(str(second))
        third = write(files, "2-x", changed(weights, 2))
        files.keep(str(third))
        assert first.exists() and merged(second)["a"].sum() == 1
    assert list(tmp_path.iterdir()) == [third] and stored(third) == 800


@pytest.mark.parametrize("fault", ["refused", "removed", "not marked"])
def test_after_a_refusal_or_a_loss_the_parts_of_all_processes_are_whole(tmp_path, weights, fault):
    files = [files_of(tmp_path, weights) for _ in range(2)]
    write_parts(files, "0-x", weights)
    path = write_parts(files, "1-x", changed(weights))
    assert stored(path) == 6
    if fault == "refused":
        files[0].refuse(str(path))
    elif fault == "removed":
        shutil.rmtree(path)
    else:
        (path / MARK).unlink()
    path = write_parts(files, "2-x", changed(weights, 2))
    assert stored(path) == 800 and merged(path)["a"].sum() == 2
    assert stored(write_parts(files, "3-x", changed(weights, 3))) == 6


def test_a_refused_folder_that_deltas_did_not_write_stays_as_it_is(tmp_path, weights):
    (tmp_path / "checkpoint").mkdir()
    files_of(tmp_path, weights).refuse(str(tmp_path / "checkpoint"))
    assert not list((tmp_path / "checkpoint").iterdir())


def test_after_a_version_that_was_not_written_to_the_end_the_next_is_whole(tmp_path, weights):
    files = files_of(tmp_path, weights)
    write(files, "0-x", weights)

    def broken():
        yield "a", changed(weights)["a"]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write(files, "1-x", broken())
    assert [folder.name for folder in tmp_path.iterdir()] == ["0-x"]
    path = write(files, "2-x", changed(weights))
    assert stored(path) == 800 and merged(path)["a"].sum() == 1


def test_one_process_may_write_whole_what_several_have_written(tmp_path, weights):
    files = [files_of(tmp_path, weights) for _ in range(2)]
    write_parts(files, "0-x", weights)
    path = write(files[0], "1-x", changed(weights))
    assert merged(path)["a"].sum() == 1
    # The first process had one of both tensors before.
    assert stored(path) in (6 + 200, 6 + 600)


def test_files_that_give_other_weights_are_refused(tmp_path, weights):
    files = files_of(tmp_path, weights)
    first = write(files, "0-x", weights)
    second = write(files, "1-x", changed(weights))
    [file] = first.glob("*.safetensors")
    tensors = load_file(file)
    tensors["b"][7] = 3
    save_file(tensors, file)
    for path in (first, second):
        wait_until_stable(path)  # the size is the same
        read = MergedWeights(path)
        assert len(list(read)) == 2
        with pytest.raises(OSError, match=r"have the checksum \d+, not \d+: files of an earlier"):
            read.check()


def test_a_version_waits_for_the_files_of_older_versions(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(weight_files, "SEEN_SECONDS", 0.0)
    files = files_of(tmp_path, weights)
    first = write(files, "0-x", weights)
    second = write(files, "1-x", changed(weights))
    assert len(json.loads((second / CHAIN).read_text())["parts"][0]) == 2
    [file] = first.glob("*.safetensors")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"part-000-00000.safetensors has 0 bytes"):
        wait_until_stable(second)


def test_a_part_is_refused_whose_base_the_first_process_does_not_see(tmp_path, weights):
    files = [files_of(tmp_path / "here", weights), files_of(tmp_path / "there", weights)]
    for each in files:
        write(each, "0-x", weights)
    shutil.rmtree(tmp_path / "here" / "0-x")
    parts = Parts("1-x", 1)
    files[1].write_part(parts, changed(weights), "the model", 0)
    shutil.copytree(tmp_path / "there" / "1-x", tmp_path / "here" / "1-x")
    with pytest.raises(FileNotFoundError, match="0-x"):
        write(files[0], "1-x", parts)


def test_a_tensor_with_a_delta_is_not_whole_in_the_file(tmp_path, weights):
    files = files_of(tmp_path, weights)
    write(files, "0-x", weights)
    path = write(files, "1-x", changed(weights, 3))
    [file] = path.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        assert set(tensors.keys()) == {"indices:a", "values:a"}
        assert tensors.get_tensor("indices:a").tolist() == [0, 1, 2]
