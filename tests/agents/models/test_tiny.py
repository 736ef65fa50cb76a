from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.models.tiny import TAGS, make_checkpoint, make_tokenizer
from retool_env.episode import decode, encode_result
from retool_env.protocol.tags import render_result
from retool_env.sandbox import Execution, Outcome


def reloaded():
    """As everyone else loads it: what counts is the tokenizer that comes out of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        return AutoTokenizer.from_pretrained(make_checkpoint(Path(folder), seed=0))


TOKENIZER = reloaded()


@given(st.one_of(st.text(), st.lists(st.sampled_from([*TAGS, "12", "7", " + ", "é"])).map("".join)))
def test_any_text_round_trips(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_a_program_prints_or_raises_can_be_shown(text):
    """Also of lone surrogates, which no tokenizer takes; special tokens' names are spelled out."""
    trace = f"Traceback (most recent call last):\n    {text}\nE: {text}<|end|>"
    result = render_result(Execution(Outcome.RUNTIME_ERROR, text, "E: <|end|>", trace), 400)
    ids = encode_result(TOKENIZER, result)
    assert decode(TOKENIZER, ids) == result
    assert not {TOKENIZER.eos_token_id, TOKENIZER.pad_token_id} & set(ids)


@pytest.mark.parametrize("tag", TAGS)
def test_tags_are_one_token_each(tag):
    assert len(TOKENIZER.encode(tag)) == 1


def test_digits_are_one_token_each_and_signs_bring_their_spaces():
    texts = [TOKENIZER.decode([i]) for i in TOKENIZER.encode("(27 + 5) * 123")]
    assert texts == ["(", "2", "7", " + ", "5", ")", " * ", "1", "2", "3"]


def test_the_checkpoint_is_of_about_a_million_parameters_and_loads_as_any_other(tmp_path):
    folder = make_checkpoint(tmp_path / "tiny", seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    text = "<code>\n```python\nprint(1)\n```\n</code>π"
    assert tokenizer.encode(text) == make_tokenizer().encode(text)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_further_words_are_one_token_each_and_change_no_other_id():
    words, usual = (" and the ", "print(max("), make_tokenizer()
    tokenizer = make_tokenizer(words, 1024)
    assert [len(tokenizer.encode(word)) for word in words] == [1, 1]
    assert tokenizer.encode("print(max(1))")[1:] == usual.encode("1))")
    assert tokenizer.get_vocab().items() > usual.get_vocab().items()
    assert (tokenizer.model_max_length, usual.model_max_length) == (1024, 512)
