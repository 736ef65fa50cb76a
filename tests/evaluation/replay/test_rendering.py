"""An episode in another protocol makes the same requests, and no token ids are claimed."""

import dataclasses

import pytest
from helpers.episodes import OK, episode
from helpers.recorded_runs import code, played, write_eval
from helpers.small_runs import make_small
from hypothesis import given
from hypothesis import strategies as st
from protocol.test_hermes import byte_level_tokenizer

from retool_env.episode import Episode, Generation, RunProgram
from retool_env.errors import SettingsError
from retool_env.evaluation.replay.rendering import chat_tokenizer, rendered
from retool_env.evaluation.runs import open_run
from retool_env.protocol import PROTOCOLS
from retool_env.rules import Rules
from retool_env.transcript import Span, StopReason

RULES = Rules(void_turn="continue", announce_calls=True, max_calls=5)
HERMES = dataclasses.replace(RULES, protocol="hermes")
TURNS = [f"Let me see.\n{code('print(6 * 7)')}", "hm", code("1/0"), "So <answer>42</answer>"]


@pytest.fixture(scope="module")
def tags(sandbox):
    return played(sandbox, *TURNS, rules=RULES)


def requests(parts, protocol):
    form = PROTOCOLS[protocol](True, False, False)
    turns = [form.parse(text) for author, text in parts if author == "model"]
    return [(turn.kind, turn.content) for turn in turns]


def test_an_episode_in_another_protocol_is_the_episode_of_that_protocol(tags, sandbox):
    made = rendered(tags, RULES, "hermes")
    texts = [text for author, text in made.parts if author == "model"]
    assert made.notes == [] and requests(made.parts, "hermes") == requests(
        rendered(tags, RULES, "tags").parts, "tags"
    )
    again = played(sandbox, *texts, rules=HERMES)
    assert again.stop_reason == tags.stop_reason and again.correct
    assert again.text == made.text
    back = rendered(again, HERMES, "tags")
    assert back.notes == []
    # The model's words stay, with the box; programs are in fences.
    assert back.parts[-1][1] == "So \\boxed{42}\n<answer>\n\\boxed{42}\n</answer>"
    assert [kind for kind, _ in requests(back.parts, "tags")] == ["code", "void", "code", "answer"]


def test_an_episode_in_its_own_protocol_is_unchanged(tags):
    assert rendered(tags, RULES, "tags").text == tags.text


def test_through_a_chat_template_the_text_is_the_text_of_an_episode_of_tokens(tags):
    tokenizer = byte_level_tokenizer()
    made = rendered(tags, RULES, "hermes", tokenizer)
    episode = Episode(tags.problem, HERMES, tokenizer)
    results = [call.execution for call in tags.calls]
    for author, text in made.parts:
        if author == "model":
            ids = (*tokenizer.encode(text), tokenizer.eos_token_id)
            episode.act_ids(Generation(ids, (0.0,) * len(ids), "eos"))
        elif author == "env" and isinstance(episode.need, RunProgram):
            episode.executed(results.pop(0))
    end = tokenizer.eos_token  # the turn's own token here, and the result's text there
    texts = [text.removeprefix(end) for _, text in made.parts]
    assert [span.text for span in episode.transcript.spans] == texts
    in_tags = rendered(tags, RULES, "tags", tokenizer).text
    assert in_tags.startswith("<|im_start|>user\n") and in_tags.endswith("So <answer>42</answer>")


def test_a_turn_that_would_be_read_in_another_way_is_noted(sandbox):
    turns = ["so \\boxed{1}, or", "So <answer>42</answer>"]
    made = rendered(played(sandbox, *turns, rules=RULES), RULES, "hermes")
    assert made.notes == ["span 1 is read as answer: '1'"]
    with pytest.raises(SettingsError, match="can't be written in the protocol 'mine'"):
        rendered(played(sandbox, *turns, rules=RULES), RULES, "mine")


@given(st.text(alphabet="a`\"'\\\n{}<>/ ", max_size=30))
def test_a_program_is_the_same_in_the_other_protocol_or_a_note_says_so(words):
    turn = code(f"x = {words!r}")
    tags = episode("p", StopReason.ANSWERED, (turn, OK), "<answer>42</answer>")
    for protocol in ("hermes", "tags"):
        made = rendered(tags, Rules(protocol=tags.protocol), protocol)
        programs = [content for kind, content in requests(made.parts, protocol) if kind == "code"]
        assert (programs == [f"x = {words!r}"]) == (made.notes == [])
        hermes = [Span(author, text) for author, text in made.parts]
        hermes[2] = dataclasses.replace(hermes[2], execution=OK)
        tags = dataclasses.replace(tags, protocol=protocol, spans=tuple(hermes))


def test_a_template_file_needs_the_tokenizer_of_the_runs_model(tags, tmp_path):
    run = open_run(write_eval(tmp_path / "run", [tags], RULES))
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}!")
    with pytest.raises(SettingsError, match="models/m was not found"):
        chat_tokenizer(str(tmp_path / "t.jinja"), run)
    model = make_small(tmp_path / "model")
    named = dataclasses.replace(run.record.model, name=model)
    at_hand = dataclasses.replace(run, record=dataclasses.replace(run.record, model=named))
    tokenizer = chat_tokenizer(str(tmp_path / "t.jinja"), at_hand)
    assert rendered(tags, RULES, "tags", tokenizer).parts[0][1].endswith("6 * 7?\n!")
    with pytest.raises(SettingsError, match="no tokenizer can be loaded"):
        chat_tokenizer(str(tmp_path), run)
