"""The blocks of an episode for a terminal say in words what their colours say."""

import pytest
from helpers.run_folders import fill
from helpers.viewed_runs import HOSTILE, a_recover, an_eval, hostile

from retool_env.evaluation.records import EpisodeRecord
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.episode import episode_view
from retool_env.evaluation.view.index import Index

pytest.importorskip("rich", reason="pip install 'retool-env[report]'")
from retool_env.evaluation.view.terminal_text import MOST_CHARACTERS, blocks, token_blocks


def index_of(folder) -> Index:
    index = Index(open_run(folder), cache=False)
    index.refresh()
    return index


def shown(folder, address):
    pieces = blocks(episode_view(index_of(folder), address))
    return pieces, "\n".join(piece.text.plain for piece in pieces)


def test_an_episode_has_its_verdict_its_calls_and_its_forks_in_words(tmp_path):
    pieces, text = shown(a_recover(tmp_path / "run"), "dose/0/p/0")
    assert "right · end: answered · answer 42 · reference answer 42" in text
    assert "fork at call 1, control (true result): 2 of 2 right" in text
    assert "fork at call 1, timeout: 1 of 2 right" in text
    assert "call 1: ok" in text and "print(6 * 7)" in text
    assert [piece.kind for piece in pieces][:4] == ["head", "span", "text", "span"]


def test_a_failed_call_is_marked_and_the_real_result_is_shown(tmp_path):
    pieces, text = shown(a_recover(tmp_path / "run"), "fork/timeout/p/0.1/0")
    [failed] = [piece for piece in pieces if piece.kind == "failed"]
    assert failed.text.plain.startswith("call 1: timeout")
    assert "fault timeout: the model did not see the real result: ok\n42" in text


def test_texts_of_others_are_escaped_in_every_block(tmp_path):
    folder = an_eval(tmp_path / "run")
    fill(folder / "episodes.jsonl", [EpisodeRecord("m", "h", 0, 0, hostile())])
    index = index_of(folder)
    [row] = index.rows()
    view = episode_view(index, row["address"])
    tokens = {"why": HOSTILE, "spans": [{"ids": [1], "texts": [HOSTILE], "mask": [1]}] * 9}
    tokens["spans"] = [{**span, "logprobs": None} for span in tokens["spans"]]
    for piece in [*blocks(view), *token_blocks(view, tokens)]:
        assert not {*map(ord, piece.text.plain)} & {*range(9), *range(11, 32), 0x202E, 0xD800}
    assert any(r"\x1b[31mred" in piece.text.plain for piece in blocks(view))
    assert any(r"\u202e" in piece.text.plain for piece in blocks(view))


def test_a_long_part_is_cut_with_a_note(tmp_path):
    view = episode_view(index_of(a_recover(tmp_path / "run")), "dose/0/p/0")
    view["spans"][1]["parts"] = [{"kind": "text", "text": "\x1b" + "x" * (MOST_CHARACTERS + 4)}]
    view["spans"][1]["parts"] += [{"kind": "program", "pieces": [["", "y" * 10**6]], "text": "y"}]
    text = "\n".join(piece.text.plain for piece in blocks(view))
    assert "[5 characters more: see the page]" in text and len(text) < 3 * MOST_CHARACTERS
    assert "the rest is not shown" in text and "\x1b" not in text


def test_tokens_are_marked_by_their_log_prob_and_the_loss_mask():
    span = {"ids": [1, 2, 3], "texts": None, "logprobs": [-0.01, -0.5, -3.0], "mask": [1, 1, 1]}
    masked = {"ids": [4], "texts": ["out"], "logprobs": None, "mask": [0]}
    view = {"spans": [{"author": "model"}, {"author": "env"}]}
    legend, model, env = token_blocks(view, {"why": "no texts", "spans": [span, masked]})
    assert "no texts" in legend.text.plain and model.text.plain == "model, 3 tokens\n1 2 3 "
    styles = [str(part.style) for part in model.text.spans]
    assert styles == ["italic", "black on yellow", "black on red"]
    assert [str(part.style) for part in env.text.spans] == ["italic", "dim underline"]
