"""The page in a real browser: hostile and long texts, tokens, accessibility, a page as a file.

The guard of every tab fails on a dialog, an error, a violation of the policy or a foreign request.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
from helpers.browser import NARROW, WIDE
from helpers.episodes import ANSWERED, OK, RIGHT, episode, with_ids
from helpers.viewed_runs import a_recover, hostile

from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view import static
from retool_env.evaluation.view.static import link, write_static
from retool_env.transcript import write_transcripts

FORK = "fork/timeout/p/0.1/1"
CONTROL = "fork/control/p/0.1/0"


# --- hostile and long texts ----------------------------------------------------------------------


def test_hostile_texts_are_shown_and_never_run(tab, hostile_server):
    page = tab(hostile_server.address).open("#episode=line%2F1")
    page.wait(".fault")
    for selector in (".question-text", ".span.model .program", ".span.env .result"):
        assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.text(selector)
    assert page.page.locator("#panels :is(img, iframe, script)").count() == 0
    page.page.locator("summary", has_text="Metadata").click()
    page.press("t")
    page.wait(".legend")
    page.page.fill("#query", '"<script>alert(1)"')
    page.wait("#matches", "1 of 4")


def test_invisible_characters_are_shown_and_directions_do_not_leave_their_text(tab, hostile_server):
    page = tab(hostile_server.address).open("#episode=line%2F1")
    page.wait(".fault")
    shown = page.text(".question-text")
    for sign in ("␛[31mred", "U+202Eright to left", "U+200Bzero", "␀", "U+D800", "U+2028", "␍"):
        assert sign in shown
    assert page.page.get_attribute(".control >> nth=0", "title") == "U+001B"
    box = page.page.locator(".question-text")
    left = box.get_by_text("U+202E").bounding_box()["x"]
    right = box.get_by_text("U+202C").bounding_box()["x"]
    assert left < right or box.get_by_text("U+202C").bounding_box()["y"] > box.bounding_box()["y"]


def test_a_megabyte_on_one_line_is_shown_part_by_part(tab, hostile_server):
    page = tab(hostile_server.address).open("#episode=line%2F2")
    page.wait(".span.env .more")
    assert len(page.page.locator(".span.env .result").inner_text()) == 20_000
    more = page.page.locator(".span.env .more")
    assert more.inner_text() == "Show more (980,000 further characters)"
    more.click()
    page.wait(".span.env .more", "880,000")
    # The server keeps the end of this text back until it is asked for.
    turn = page.page.locator(".span.model").nth(1)
    for left in ("180,019", "100,019", "(19 further"):
        turn.locator(".more").click()
        turn.locator(".more", has_text=left).wait_for()
    turn.locator(".more").click()
    turn.get_by_text("<answer>42</answer>").wait_for()
    assert turn.locator(".more").count() == 0
    assert page.page.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]


def test_ten_thousand_lines_are_cut(tab, hostile_server):
    page = tab(hostile_server.address).open("#episode=line%2F3")
    page.wait(".span.env .more")
    assert page.text(".span.env .result").splitlines()[-1] == "line 299"
    page.page.locator(".span.env .more").click()
    page.page.get_by_text("line 2299").wait_for()


# --- tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token_server(served, tmp_path_factory):
    """A server of an episode with token ids, log-probs of all sizes, and trained log-probs."""
    made = with_ids(episode("p", ANSWERED, ("<code>a</code>", OK), RIGHT, correct=True))
    spans = []
    for span in made.spans:
        if span.author == "model":
            logprobs = tuple(-0.4 * (n % 20) for n in range(len(span.token_ids)))
            trained = tuple(p - 0.5 for p in logprobs)
            span = dataclasses.replace(span, logprobs=logprobs, trained_logprobs=trained)
            span = dataclasses.replace(span, weight_version=7)
        spans.append(span)
    path = tmp_path_factory.mktemp("tokens") / "tokens.jsonl"
    write_transcripts(path, [dataclasses.replace(made, spans=tuple(spans), weight_version=7)])
    return served(path)


def test_tokens_show_log_prob_mask_and_ratio_by_hover_and_keyboard(tab, token_server):
    page = tab(token_server.address).open("#episode=line%2F1&tokens=1")
    page.wait(".model .tokens")
    tokens = page.page.locator(".span.model").first.locator(".token")
    tokens.nth(3).hover()
    page.wait(".inspector dd", "-1.2000")
    inspector = page.text(".inspector")
    for name, value in {
        **{"Id": "3", "Loss mask": "1: trained", "Weight version": "7"},
        **{"Trained log-prob": "-1.7000", "Ratio": f"{math.exp(-0.5):.4f}"},
    }.items():
        assert f"{name}\n{value}" in inspector
    tokens.first.focus()
    page.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert "Log-prob\n-0.4000" in page.text(".inspector")
    page.page.locator(".span.env .token").first.hover()
    page.wait(".inspector dd", "0: masked out")
    assert "none: not sampled" in page.text(".inspector")
    likely, unlikely = tokens.nth(0).get_attribute("class"), tokens.nth(19).get_attribute("class")
    assert "level-0" in likely and "level-4" in unlikely and "masked" not in likely
    assert "masked" in page.page.locator(".span.env .token").first.get_attribute("class")


def test_the_tokens_are_a_toggle_with_a_legend(tab, token_server):
    page = tab(token_server.address).open("#episode=line%2F1")
    page.wait(".span.model")
    assert page.page.locator(".token").count() == 0
    page.page.get_by_role("button", name="Tokens").click()
    page.wait(".legend", "masked out: no loss")
    assert page.page.get_by_role("button", name="Tokens").get_attribute("aria-pressed") == "true"
    page.page.get_by_role("button", name="Tokens").click()
    page.wait(".span.model .program")
    assert page.page.locator(".token").count() == 0


def test_an_episode_without_token_ids_says_so(tab, hostile_server):
    page = tab(hostile_server.address).open("#episode=line%2F3&tokens=1")
    page.wait(".inspector", "no token ids")
    assert page.text(".span.model .program") == "a"


# --- accessibility -------------------------------------------------------------------------------


_OPEN_ALL = "document.querySelectorAll('#episode details').forEach((one) => (one.open = true))"


@pytest.mark.some(4)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_no_violation(tab, recover_server, token_server, scheme, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    states = [
        (recover_server, "#q=rihgt%3Ano", "#query-error:not(:empty)"),
        (recover_server, link(0, FORK, beside=(0, CONTROL)), ".pane:nth-child(2) .forks"),
        (token_server, "#episode=line%2F1&tokens=1", ".model .tokens"),
    ]
    for server, fragment, ready in states:
        page = tab(server.address, size, color_scheme=scheme).open(fragment)
        page.wait(ready)
        page.page.evaluate(_OPEN_ALL)
        found = axe.run(page.page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


def test_a_reader_without_eyes_hears_the_list_and_the_matches(tab, recover_server):
    page = tab(recover_server.address).open(f"#episode={FORK}")
    page.wait(".span")
    row = page.page.locator("#list li").first
    assert (row.get_attribute("aria-posinset"), row.get_attribute("aria-setsize")) == ("1", "5")
    assert page.page.get_by_role("status").first.inner_text() == "5 episodes"
    for role, name in (("navigation", "Episodes"), ("region", "Episode"), ("article", "Episode")):
        assert page.page.get_by_role(role, name=name, exact=True).count() == 1
    levels = page.page.locator("#episode :is(h1, h2, h3, h4)")
    assert [each.evaluate("one => one.tagName") for each in levels.all()][:3] == ["H2", "H3", "H3"]


# --- the page as a file --------------------------------------------------------------------------


def test_the_page_as_a_file_shows_the_same_without_a_server(tab, tmp_path):
    path = tmp_path / "view.html"
    write_static([open_run(a_recover(tmp_path / "recover"))], path)
    page = tab(path.as_uri()).open()
    assert page.text("#matches") == "5 episodes"
    page.page.fill("#query", '"<answer>4<"')
    page.wait("#matches", "1 of 5")
    page.page.locator("#list a").first.click()
    page.wait(".pane h2")
    page.page.locator(".again-box button").first.click()
    command = f"retool replay {tmp_path / 'recover'} {FORK} --call 1 --seconds 30"
    page.wait(".command", command)
    page.press("s")
    page.wait(".pane:nth-child(2) h2")
    page.press("t")
    page.wait(".inspector", "no tokens")


def test_hostile_texts_stay_texts_in_a_file(tab, tmp_path):
    source, path = tmp_path / "hostile.jsonl", tmp_path / "view.html"
    write_transcripts(source, [hostile()])
    write_static([open_run(source)], path)
    page = tab(path.as_uri()).open("#episode=line%2F1")
    page.wait(".fault")
    assert "<script>alert(1)</script>" in page.text(".question-text")


def test_an_episode_in_another_file_has_a_link_to_it(tab, tmp_path, monkeypatch):
    monkeypatch.setattr(static, "MOST_PAGE", 400_000)
    source, path = tmp_path / "long.jsonl", tmp_path / "view.html"
    write_transcripts(source, [episode("p", ANSWERED, "x" * 50_000 + RIGHT)] * 12)
    files = write_static([open_run(source)], path)
    assert len(files) > 1
    page = tab(path.as_uri()).open()
    assert page.text("#matches") == "12 episodes"
    page.page.locator("#list a").nth(11).click()
    page.wait(".pane [role=alert]", "is in another file")
    page.page.locator(".pane [role=alert] a").click()
    page.wait(".pane h2", "#11")
    assert page.page.url.split("#")[0].endswith(files[-1].name)
