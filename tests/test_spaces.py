"""The text spaces contain all strings, and their samples are reproducible."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from gymnasium.vector.utils import batch_space, concatenate, iterate
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.protocol.result import is_empty_program
from retool_env.protocol.tags import parse_turn
from retool_env.protocol.turn import TurnKind
from retool_env.spaces import AnyText, TurnText

BOTH = pytest.mark.parametrize("kind", [AnyText, TurnText])


@BOTH
@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=())))
def test_every_string_is_inside(kind, text):
    assert text in kind()


@BOTH
def test_nothing_but_strings_is_inside(kind):
    assert "" in kind() and np.str_("π") in kind()
    for other in (None, 1, b"a", ["a"], np.array("a")):
        assert other not in kind()


@BOTH
def test_samples_are_inside_repeatable_and_varied(kind):
    space, again, other = kind(seed=5), kind(seed=5), kind(seed=6)
    samples = [space.sample() for _ in range(100)]
    assert samples == [again.sample() for _ in range(100)]
    assert samples != [other.sample() for _ in range(100)]
    assert len(set(samples)) > 50 and all(sample in space for sample in samples)
    again.seed(5)
    assert samples[0] == again.sample()


def test_any_text_draws_text_of_every_sort():
    space = AnyText(seed=1)
    samples = [space.sample() for _ in range(500)]
    assert "" in samples and max(map(len, samples)) > 32
    assert any(sample.isascii() for sample in samples)
    assert any(ord(c) > 0xFFFF for sample in samples for c in sample)
    "".join(samples).encode()  # no lone surrogates


def test_turn_text_draws_every_kind_of_turn():
    space = TurnText(seed=1)
    turns = [parse_turn(space.sample()) for _ in range(200)]
    assert {turn.kind for turn in turns} == set(TurnKind)
    programs = [turn.content for turn in turns if turn.kind is TurnKind.CODE]
    assert any(is_empty_program(p) for p in programs)
    compiled = [_compiles(p) for p in programs]
    assert any(compiled) and not all(compiled)


def _compiles(program: str) -> bool:
    try:
        compile(program, "turn", "exec")
    except SyntaxError:
        return False
    return True


@BOTH
def test_masks_are_refused(kind):
    with pytest.raises(ValueError, match="neither mask"):
        kind().sample(mask=np.ones(3))
    with pytest.raises(ValueError, match="neither mask"):
        kind().sample(probability=np.ones(3))


@BOTH
def test_copies_pickles_and_comparisons(kind):
    space = kind(seed=3)
    space.sample()
    for twin in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert twin == space and twin.sample() == copy.deepcopy(space).sample()
    assert AnyText() != TurnText() and kind() != 3
    assert repr(space) == f"{kind.__name__}()" and not space.is_np_flattenable
    assert space.from_jsonable(space.to_jsonable(["π", ""])) == ["π", ""]


@BOTH
def test_gymnasium_can_batch_it(kind):
    batch = batch_space(kind(seed=1), 3)
    actions = batch.sample()
    assert len(actions) == 3 and len(set(actions)) == 3 and actions in batch
    assert list(iterate(batch, actions)) == list(actions)
    assert tuple(concatenate(kind(), ["a", "", "π"], None)) == ("a", "", "π")
