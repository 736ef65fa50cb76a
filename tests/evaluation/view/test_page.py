"""The page in a real browser: list, filters, keys, one episode, two side by side, and links."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from helpers.browser import NARROW
from helpers.episodes import ANSWERED, OK, RIGHT, episode
from helpers.viewed_runs import an_eval, append, evaluated

import retool_env.evaluation.view
from retool_env.transcript import write_transcripts

PAGE = Path(retool_env.evaluation.view.__file__).parent / "page"
MODULES = sorted(PAGE.glob("*.js"))
TABLE = json.loads(Path(__file__).with_name("filters.json").read_text("utf-8"))
PARENT = "dose/0/p/0"
FORK = "fork/timeout/p/0.1/1"
CONTROL = "fork/control/p/0.1/0"


# --- the form of the files -----------------------------------------------------------------------


def test_no_module_makes_elements_from_text():
    for path in [*MODULES, PAGE / "index.html"]:
        text = path.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text), (
            path
        )
        assert not re.search(r"\sstyle=|\son[a-z]+=", text), path


def test_the_modules_are_short_and_can_be_joined_into_one_script():
    names: list[str] = []
    for path in MODULES:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) < 300 and text.startswith("/**"), path
        names += re.findall(r"^(?:export )?(?:async )?(?:function|const|let) (\w+)", text, re.M)
        kept = re.sub(r'^import \{[^}]*\} from "\./\w+\.js";$', "", text, flags=re.M)
        assert not re.search(r"^\s*import\b", kept, re.M), path
        assert not re.search(r"^export (?!function|async function|const)", kept, re.M), path
    assert sorted(names) == sorted(set(names))


# --- the list ------------------------------------------------------------------------------------


def test_a_long_id_is_cut_at_its_beginning_and_the_sample_stays_readable(tab, served, tmp_path):
    record = evaluated(1, problem=f"{'long-' * 20}seed0/7")
    folder = an_eval(tmp_path / "run", count=0)
    append(folder / "episodes.jsonl", record)
    page = tab(served(folder).address, NARROW).open().page
    parts = """() => [...document.querySelector("#list .head").children].map(
        (one) => [one.scrollWidth > one.clientWidth, getComputedStyle(one).direction])"""
    assert page.evaluate(parts)[1:] == [[True, "rtl"], [False, "ltr"]]
    assert page.locator("#list .where").first.inner_text() == "#1"


# --- filters -------------------------------------------------------------------------------------

RUN_TABLE = """async (table) => {
  const at = (name) => new URL(name, location.href.split("#")[0]);
  const { readQuery, keeps, flipsOf } = await import(at("query.js"));
  const found = new Map(Object.entries(table.found).map(([text, one]) => [text, new Set(one)]));
  return table.cases.map(({ query, with_other }) => {
    const flips = with_other ? flipsOf(table.rows, table.other) : undefined;
    try {
      const parts = readQuery(query);
      const kept = table.rows.filter((row) => keeps(parts, row, { found, flips }));
      return { addresses: kept.map((row) => row.address) };
    } catch (error) {
      return { error_at: error.at };
    }
  });
}"""


def test_the_filters_select_the_rows_of_the_shared_table(tab, recover_server):
    got = tab(recover_server.address).open().page.evaluate(RUN_TABLE, TABLE)
    expected = [
        {key: case[key] for key in ("addresses", "error_at") if key in case}
        for case in TABLE["cases"]
    ]
    for case, one, other in zip(TABLE["cases"], got, expected, strict=True):
        assert one == other, case["query"]


def test_the_controls_edit_the_query_and_combine(tab, recover_server):
    page = tab(recover_server.address).open()
    assert page.text("#matches") == "5 episodes"
    page.page.get_by_label("Result").select_option("wrong")
    page.wait("#matches", "1 of 5")
    page.page.get_by_text("More filters").click()
    page.page.get_by_label("Arm").select_option(label="control (2)")
    page.wait("#matches", "0 of 5")
    assert page.page.input_value("#query") == "right:no arm:control"
    page.page.get_by_label("Result").select_option("any")
    page.wait("#matches", "2 of 5")
    assert page.fragment() == "#run=0&q=arm:control"
    assert page.page.get_by_label("Fault").count() == 1


def test_a_written_query_searches_the_texts_and_a_fault_is_said(tab, recover_server):
    page = tab(recover_server.address).open()
    page.page.fill("#query", '"<ANSWER>4<" right:no')
    page.wait("#matches", "1 of 5")
    page.page.fill("#query", "rihgt:yes")
    page.wait("#query-error", 'unknown filter "rihgt"')
    assert page.page.get_attribute("#query", "aria-invalid") == "true"
    page.page.fill("#query", "-arm:control")
    page.wait("#matches", "3 of 5")
    assert page.page.get_by_label("Result").input_value() == ""


def test_rows_are_sorted_as_the_state_says(tab, recover_server):
    page = tab(recover_server.address).open("#sort=reward")
    assert "wrong" in page.texts("#list li")[0]
    page.page.get_by_label("Sort by").select_option("-reward")
    page.wait("#list li:first-child", "right")
    assert "wrong" in page.texts("#list li")[-1]


def test_ten_thousand_rows_stay_quick(tab, recover_server):
    """Few rows are in the document; the last row, a filter and an order are reached at once."""
    page = tab(recover_server.address)
    row = TABLE["rows"][0]
    rows = [
        {**row, "address": f"p-{n}/0", "problem": f"p-{n}", "calls": n % 7, "tokens": n}
        for n in range(10_000)
    ]
    body = json.dumps({"rows": rows, "next": 1, "removed": []})
    page.page.route("**/api/rows?*", lambda route: route.fulfill(body=body))
    page.open()
    assert page.text("#matches") == "10,000 episodes"
    assert page.page.locator("#list li").count() < 60
    page.page.evaluate("document.getElementById('list-scroll').scrollTop = 1e9")
    page.wait("#list li", "p-9999")
    assert page.page.locator("#list li").last.get_attribute("aria-posinset") == "10000"
    page.page.fill("#query", "calls:6 tokens:>9000")
    page.wait("#matches", "143 of 10,000 episodes")
    page.page.get_by_label("Sort by").select_option("-tokens")
    page.wait("#list li:first-child", "p-9995")


# --- keys and focus ------------------------------------------------------------------------------


def test_the_keyboard_does_everything(tab, recover_server):
    page = tab(recover_server.address).open("#sort=reward")
    page.press("j")
    assert page.focused().startswith("✗ wrong")
    page.press("ArrowDown", "k", "Enter")
    page.wait(".pane h2", "p")
    assert page.focused().startswith("p") and f"episode={FORK}" in page.fragment()
    page.press("n")
    assert page.focused().startswith("Interpreter · call 1 ✗ timeout")
    assert "span=2" in page.fragment()
    page.press("t")
    page.wait(".legend")
    page.press("t", "s")
    page.wait(".pane:nth-child(2) h2")
    assert f"beside={CONTROL}" in page.fragment()
    page.press("Escape")
    assert page.page.locator(".pane").count() == 1
    page.press("Escape")
    assert "episode" not in page.fragment()
    assert page.page.evaluate("document.activeElement.closest('#list') !== null")
    page.press("/")
    page.page.keyboard.type("right:no")
    page.wait("#matches", "1 of 5")
    page.press("Enter")
    page.wait("#list a:focus")
    page.press("?")
    page.wait("dialog[open]", "next failed call")
    page.press("Escape")
    assert page.page.locator("dialog[open]").count() == 0


def test_letters_in_the_query_are_letters(tab, recover_server):
    page = tab(recover_server.address).open()
    page.page.focus("#query")
    page.page.keyboard.type("jkstnp?/")
    assert page.page.input_value("#query") == "jkstnp?/"
    assert page.page.locator("dialog[open]").count() == 0


# --- links ---------------------------------------------------------------------------------------


def test_back_and_forward_and_a_link_show_the_same_state(tab, recover_server):
    page = tab(recover_server.address).open()
    page.page.locator("#list a").first.click()
    page.wait(".pane h2")
    opened = page.fragment()
    page.press("t")
    page.wait(".legend")
    page.page.go_back()
    page.page.locator(".legend").wait_for(state="detached")
    page.page.go_back()
    page.page.locator(".pane").wait_for(state="detached")
    page.page.go_forward()
    page.wait(".pane h2")
    assert page.fragment() == opened
    again = tab(recover_server.address).open(f"{opened}&span=2&q=arm%3A0")
    again.wait(".span.env")
    assert again.focused().startswith("Interpreter · call 1")
    assert again.text("#matches") == "1 of 5 episodes"
    assert again.page.locator("#list a[aria-current=true]").count() == 1


def test_the_link_of_the_state_is_copied(tab, recover_server):
    page = tab(recover_server.address, permissions=["clipboard-read", "clipboard-write"])
    page.open("#q=right%3Ano")
    page.page.get_by_role("button", name="Copy link").click()
    page.wait("#copy-link", "Copied")
    assert page.page.evaluate("navigator.clipboard.readText()").endswith("#q=right%3Ano")


def test_an_unknown_episode_and_a_damaged_fragment_are_answered_in_words(tab, recover_server):
    page = tab(recover_server.address).open("#run=99&episode=no%2Fsuch&span=x&tokens=2&%%%")
    page.wait(".pane [role=alert]", "no/such")
    page.guard.allowed = ["console: Failed to load resource"]


# --- one episode ---------------------------------------------------------------------------------


def test_an_episode_shows_its_header_its_spans_and_their_authors(tab, recover_server):
    page = tab(recover_server.address).open(f"#episode={PARENT}")
    page.wait(".span")
    header = page.text(".episode > dl")
    for part in ("✓ right", "Given answer\n42", "Gold answer\n42", "Ended by\nanswered"):
        assert part in header
    headings = page.texts(".span h3")
    assert [heading.split(" ·")[0].split()[0] for heading in headings] == [
        *("Prompt", "Model", "Interpreter", "Model")
    ]
    assert "call 1 ✓ ok" in headings[2]
    assert page.text(".program") == "print(6 * 7)"
    assert page.texts(".program .py-nb") == ["print"]
    assert page.text(".answer") == "42"


def test_surplus_characters_stand_apart_from_the_program(tab, served, tmp_path):
    made = episode("p", ANSWERED, ("<code>print(1)</code>\n!é", OK), RIGHT, correct=True)
    spans = [dataclasses.replace(s, surplus=3) if "!" in s.text else s for s in made.spans]
    write_transcripts(tmp_path / "one.jsonl", [dataclasses.replace(made, spans=tuple(spans))])
    page = tab(served(tmp_path / "one.jsonl").address).open("#episode=line%2F1")
    page.wait(".surplus")
    assert page.text(".surplus pre") == "⏎\n!é"
    assert page.texts(".span.model >> nth=0 >> .text") == ["<code>", "</code>", "⏎\n!é"]


def test_a_fault_is_shown_with_what_really_happened(tab, recover_server):
    page = tab(recover_server.address).open(f"#episode={FORK}")
    page.wait(".fault")
    box = page.text(".fault")
    assert "Injected fault: timeout" in box and "✓ ok" in box and "42" in box
    assert "injected" in page.text(".strip")


def test_the_forks_of_a_call_are_counted_linked_and_shown_side_by_side(tab, recover_server):
    page = tab(recover_server.address).open(f"#episode={PARENT}")
    page.wait(".forks")
    assert [arm.split(" — ")[0] for arm in page.texts(".forks summary")] == [
        *("control (true result): 2 of 2 right", "timeout: 1 of 2 right")
    ]
    page.page.locator(".forks summary").nth(1).click()
    page.page.get_by_role("link", name="fork 1 of this arm, side by side").nth(0).click()
    page.wait(".pane:nth-child(2) h2", "fork/timeout")
    assert page.page.locator("#list a[aria-current=true]").count() == 2
    page.page.locator(".pane:nth-child(2)").get_by_role("link", name="the parent #0").click()
    page.page.locator(".pane:nth-child(2)").wait_for(state="detached")
    assert page.fragment() == f"#run=0&episode={PARENT}"


def test_a_fork_says_what_came_of_the_true_result(tab, recover_server):
    page = tab(recover_server.address).open(f"#episode={FORK}")
    page.wait(".forks", "control (true result): 2 of 2 right")
    assert "Fork at call 1, arm timeout, of the parent #0" in page.text(".parent")


def test_a_program_runs_again_with_more_time(tab, recover_server):
    page = tab(recover_server.address)
    sent = []

    def answer(route):
        sent.append(json.loads(route.request.post_data))
        done = {"outcome": "ok", "stdout": "42\n", "error": "", "traceback": "", "seconds": 7.5}
        fault = {"error": "the sandbox is busy"}
        route.fulfill(json=done if len(sent) == 1 else fault, status=200 if len(sent) == 1 else 503)

    page.page.route("**/api/run", answer)
    page.open(f"#episode={FORK}")
    page.page.get_by_label("Seconds for call 1").fill("12")
    page.press("Enter")
    page.wait(".again-result", "✓ ok 7.5 s")
    assert sent == [{"run": 0, "address": FORK, "call": 1, "seconds": 12}]
    page.page.get_by_role("button", name="Run again").click()
    page.wait(".again-result [role=alert]", "the sandbox is busy")
    page.guard.allowed = ["console: Failed to load resource"]


# --- two runs, and runs that go on ---------------------------------------------------------------


def test_the_same_episode_of_a_second_run_stands_beside(tab, served, tmp_path):
    first, second = an_eval(tmp_path / "a", 3), an_eval(tmp_path / "b", 2)
    turned = evaluated(1)  # sample 1 is right in the first run, and wrong in the second
    wrong = evaluated(0).transcript
    append(second / "episodes.jsonl", type(turned)("m", "p/1", 1, 0, wrong))
    page = tab(served(first, second).address).open("#episode=p%2F1%2F1")
    page.wait(".span")
    page.press("s")
    page.wait(".pane:nth-child(2) h2", "p/1")
    assert page.fragment().endswith("beside_run=1&beside=p/1/1")
    assert page.texts(".pane .episode > dl .verdict") == ["✓ right", "✗ wrong"]
    page.page.fill("#query", "flipped:yes")
    page.wait("#matches", "1 of 3")
    runs = page.page.locator("#run-choice select")
    assert "a/checkpoint (" in runs.inner_text()  # two runs of one title are told apart
    runs.select_option("1")
    page.wait("#matches", "2 episodes")


def test_a_run_that_grows_adds_rows_and_keeps_the_place_in_the_list(tab, served, tmp_path):
    folder = an_eval(tmp_path / "run", 40, status="running")
    page = tab(served(folder).address).open()
    page.page.evaluate("document.getElementById('list-scroll').scrollTop = 1000")
    page.wait("#list li", "#13")
    page.page.locator("#list a", has_text="#14").click()
    page.wait(".pane h2")
    top = "document.getElementById('list-scroll').scrollTop"
    before = page.page.evaluate(top)
    append(folder / "episodes.jsonl", *(evaluated(0, problem=f"a/{n}") for n in range(5)))
    page.wait("#matches", "45 episodes · the run goes on")
    height = page.page.locator("#list li").first.bounding_box()["height"]
    assert page.page.evaluate(top) == pytest.approx(before + 5 * height, abs=1)
    assert "#14" in page.text("#list a[aria-current=true]")
    an_eval(folder, 40)
    page.page.locator("#matches").filter(has_not_text="goes on").wait_for()


def test_a_stopped_server_is_named_with_the_command_that_starts_it_again(tab, served, tmp_path):
    folder = an_eval(tmp_path / "run", 2)
    page = tab(served(folder).address).open()
    page.page.route("**/api/**", lambda route: route.abort("connectionrefused"))
    page.page.locator("#list a").first.click()
    again = f'The server has stopped: start it again with "retool view {folder}"'
    page.wait(".pane [role=alert]", again)
    page.guard.allowed = ["console: Failed to load resource"]


# --- narrow --------------------------------------------------------------------------------------


def test_on_a_narrow_screen_the_list_and_the_episode_stack(tab, recover_server):
    page = tab(recover_server.address, NARROW).open()
    assert not page.page.locator("#episode").is_visible()
    page.page.locator("#list a").first.click()
    page.wait(".pane h2")
    assert not page.page.locator("#list-panel").is_visible()
    width = page.page.evaluate("document.documentElement.scrollWidth")
    assert width <= NARROW["width"]
    page.page.get_by_role("button", name="Back to the list").click()
    page.page.locator("#list-panel").wait_for()
    assert page.page.locator("#list li").count() == 5
