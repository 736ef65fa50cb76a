"""Encoding and decoding: the fast path must equal the transformers wrapper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.models.tiny import make_tokenizer
from retool_env.tokens import decode, encode_result

TOKENIZER = make_tokenizer()
IDS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40)


@given(IDS)
def test_decoding_is_the_wrappers(ids):
    expected = TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert decode(TOKENIZER, ids) == decode(TOKENIZER, tuple(ids)) == expected


@given(st.lists(st.one_of(st.text(), st.sampled_from(TOKENIZER.all_special_tokens))))
def test_encoding_is_the_wrappers_with_special_tokens_spelled_out(parts):
    text = "".join(parts)
    expected = TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert list(encode_result(TOKENIZER, text)) == expected
    assert not set(expected) & set(TOKENIZER.all_special_ids)


def test_it_hangs_on_nothing_that_others_set_on_the_tokenizer():
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token
    long = "1 + 2 = 3. " * 20
    before = encode_result(tokenizer, long + eos)
    tokenizer(["1", "1 + 2"], padding="max_length", max_length=5, truncation=True)
    assert encode_result(tokenizer, long + eos) == before
    assert tokenizer.encode(eos, add_special_tokens=False) == [tokenizer.eos_token_id]


def test_tokens_that_are_added_later_are_known():
    tokenizer = make_tokenizer()
    before = encode_result(tokenizer, "~~~~")
    tokenizer.add_tokens(["~~~~"])
    [added] = encode_result(tokenizer, "~~~~")
    assert len(before) > 1 and added == tokenizer.convert_tokens_to_ids("~~~~")
    assert decode(tokenizer, [added]) == "~~~~"


@pytest.mark.parametrize("name", ["decode", "_decode", "encode"])
def test_a_wrapper_that_does_more_is_not_gone_around(name):
    kind = type(make_tokenizer())

    def own(self, *args, **kwargs):
        return f"own {name}" if "decode" in name else [7]

    tokenizer = make_tokenizer()
    tokenizer.__class__ = type("Own", (kind,), {name: own})
    if "decode" in name:
        assert decode(tokenizer, [5]) == f"own {name}"
    else:
        assert encode_result(tokenizer, "x") == (7,)
