"""Tokens are shown with the texts of the run's tokenizer, or as ids with the reason."""

import dataclasses
import json
import math
import re

import pytest
from helpers.episodes import ANSWERED, OK, RIGHT, episode
from helpers.run_folders import fill
from helpers.viewed_runs import SETTINGS, an_eval
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import EpisodeRecord, EvalRecord
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.tokens import find_tokenizer, token_texts, tokens_view
from retool_env.transcript import write_transcripts


def byte_level():
    """A tokenizer whose tokens are single bytes, and one that holds half of a character."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    names.append("bâĤ")  # b, and two of the three bytes of €
    merges = [("b", "â"), ("bâ", "Ĥ")]
    names.append("bâ")
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return made


def byte_fallback():
    """A tokenizer of words with a leading blank, and of bytes for all other characters."""
    names = ["<unk>", "▁one", "▁two", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(
        models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[], byte_fallback=True)
    )
    made.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


BYTES, WORDS = byte_level(), byte_fallback()


def encoded(transcript, tokenizer=BYTES, end=False):
    """The transcript with the tokens of its texts, sampled at -1 and trained at -0.5."""
    spans = []
    for span in transcript.spans:
        ids = tokenizer.encode(span.text).ids + [tokenizer.token_to_id("<|end|>")] * end
        values = {"token_ids": tuple(ids), "weight_version": None}
        if span.author == "model":
            values |= {"logprobs": (-1.0,) * len(ids), "trained_logprobs": (-0.5,) * len(ids)}
            values |= {"weight_version": 7}
        spans.append(dataclasses.replace(span, **values))
    return dataclasses.replace(transcript, spans=tuple(spans))


def viewed(path, address):
    index = Index(open_run(path), cache=False)
    index.refresh()
    return tokens_view(index, address)


def a_training(folder, transcript, tokenizer="checkpoint", settings=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": settings or {}}))
    write_transcripts(folder / "transcripts.jsonl", [transcript])
    if tokenizer:
        (folder / tokenizer).mkdir(parents=True)
        BYTES.save(str(folder / tokenizer / "tokenizer.json"))
    return folder


MADE = encoded(episode("p", ANSWERED, ("<code>a</code>", OK), RIGHT))


@pytest.mark.parametrize("place", ["checkpoint", "trainer/checkpoint-12"])
def test_the_tokens_of_a_training_run_have_texts_of_its_checkpoint(tmp_path, place):
    view = viewed(a_training(tmp_path / "run", MADE, place), "transcripts/1")
    assert (view["known"], place in view["why"]) == (True, True)
    assert ["".join(span["texts"]) for span in view["spans"]] == [s.text for s in MADE.spans]
    model, shown = view["spans"][1:3]
    count = len("<code>a</code>")
    assert model["mask"] == [1] * count
    assert model["versions"] == [7] * count
    assert model["ratio"] == [pytest.approx(math.exp(0.5), rel=1e-4)] * count
    assert (model["logprobs"], model["trained"]) == ([-1.0] * count, [-0.5] * count)
    assert shown["mask"] == [0] * len(shown["ids"])
    assert (shown["logprobs"], shown["versions"], shown["ratio"]) == (None, None, None)


def test_the_tokens_of_an_evaluation_have_texts_of_its_model(tmp_path):
    (tmp_path / "model").mkdir()
    BYTES.save(str(tmp_path / "model" / "tokenizer.json"))
    record = EvalRecord("run", ModelIdentity(str(tmp_path / "model"), "checkpoint"), **SETTINGS)
    fill(tmp_path / "run/episodes.jsonl", [EpisodeRecord("m", "p", 0, 0, MADE)])
    (tmp_path / "run/eval.json").write_text(json.dumps(record.to_json()))
    view = viewed(tmp_path / "run", "p/0")
    assert "".join(view["spans"][3]["texts"]) == RIGHT


def test_weight_versions_are_given_token_by_token(tmp_path):
    spans = list(MADE.spans)
    count = len(spans[1].token_ids)
    spans[1] = dataclasses.replace(spans[1], weight_runs=((7, 3), (8, count - 3)))
    made = dataclasses.replace(MADE, spans=tuple(spans))
    view = viewed(a_training(tmp_path / "run", made), "transcripts/1")
    assert view["spans"][1]["versions"] == [7] * 3 + [8] * (count - 3)


def test_a_final_end_of_sequence_token_is_shown_beyond_the_text(tmp_path):
    view = viewed(a_training(tmp_path / "run", encoded(MADE, end=True)), "transcripts/1")
    assert "".join(view["spans"][3]["texts"]) == RIGHT + "<|end|>"


def test_a_ratio_beyond_numbers_is_null(tmp_path):
    spans = list(MADE.spans)
    spans[1] = dataclasses.replace(spans[1], logprobs=(-1e4,) * len(spans[1].token_ids))
    made = dataclasses.replace(MADE, spans=tuple(spans))
    view = viewed(a_training(tmp_path / "run", made), "transcripts/1")
    assert view["spans"][1]["ratio"] == [None] * len(spans[1].token_ids)


def test_without_a_tokenizer_the_ids_alone_are_given_with_the_reason(tmp_path):
    reasons = {}
    folder = a_training(tmp_path / "run", MADE, None, {"model": "no/such-model"})
    reasons["not found"] = viewed(folder, "transcripts/1")
    reasons["name its model"] = viewed(folder / "transcripts.jsonl", "line/1")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/tokenizer.json").write_text("{}")
    reasons["can't be read"] = viewed(folder, "transcripts/1")
    WORDS.save(str(folder / "checkpoint/tokenizer.json"))
    reasons["not of the tokenizer"] = viewed(folder, "transcripts/1")
    for reason, view in reasons.items():
        assert (view["known"], reason in view["why"]) == (False, True), view["why"]
        assert [span["texts"] for span in view["spans"]] == [None] * 4
        assert view["spans"][1]["ids"] == list(MADE.spans[1].token_ids)


def test_an_episode_of_text_actions_has_no_tokens(tmp_path):
    view = viewed(an_eval(tmp_path / "run"), "p/1/0")
    assert (view["known"], view["spans"], "text" in view["why"]) == (False, [], True)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\\")))
def test_the_texts_of_tokens_join_to_the_text_and_their_bytes_to_its_bytes(text):
    ids = BYTES.encode(text).ids
    texts = list(token_texts(BYTES, ids))
    assert len(texts) == len(ids)
    shown = re.sub(rb"\\x(..)", lambda match: bytes([int(match[1], 16)]), "".join(texts).encode())
    assert shown == text.encode()


def test_tokens_that_share_a_character_show_their_bytes():
    ids = BYTES.encode("ab€c<|end|>").ids
    assert list(token_texts(BYTES, ids)) == ["a", r"b\xe2\x82", r"\xac", "c", "<|end|>"]
    cut = BYTES.encode("é😀").ids[:-1]
    assert list(token_texts(BYTES, cut)) == [rf"\x{byte:02x}" for byte in "é😀".encode()[:-1]]


def test_leading_blanks_of_words_and_bytes_for_rare_characters_join():
    ids = [WORDS.token_to_id(name) for name in ("▁one", "▁two", "<0xC3>", "<0xA9>", "▁one")]
    assert WORDS.decode(ids) == "one twoé one"
    assert list(token_texts(WORDS, ids)) == ["one", " two", r"\xc3", r"\xa9", " one"]


def test_the_model_of_a_run_may_be_any_text(tmp_path):
    path = a_training(tmp_path / "run", MADE, None)
    for name in ("", "..", "a b", "http://x/y", "\0", "x" * 500):
        (path / "config.json").write_text(json.dumps({"settings": {"model": name}}))
        assert find_tokenizer(open_run(path))[0] is None
