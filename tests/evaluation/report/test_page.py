"""The page of a report stands alone, and holds every kind of run as far as it is."""

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from helpers.episodes import ALL, DIRECT, GUESS, MENDED, RAN, RIGHT, STUBBORN, episode, with_ids
from helpers.run_folders import a_recover, a_training, an_eval

from retool_env.evaluation.recover.figures import results
from retool_env.evaluation.recover.page import write_page
from retool_env.evaluation.report.page import PAGE, write_report
from retool_env.transcript import StopReason

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """The pictures are small, since no test looks at their dots."""
    monkeypatch.setattr("retool_env.pictures.DPI", 20)


class Headings(HTMLParser):
    """The levels and texts of the headings of a page, and the alternative texts of its pictures."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.alts, self._level = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._level = int(tag[1]) if re.fullmatch("h[1-6]", tag) else self._level
        if tag == "img":
            self.alts.append(dict(attrs)["alt"])

    def handle_data(self, data):
        if self._level:
            self.headings.append((self._level, data))
            self._level = 0


def write(out, *paths):
    path, table = write_report(paths, out, lambda line: None)
    return path.read_text(encoding="utf-8"), table


QUESTIONS = [
    "Which runs are these?",
    "How often is the answer right?",
    "How far does the use of the interpreter get?",
    "When and how often is it used?",
    "What happens after an error?",
    "Does it recover?",
    "What does it cost?",
    "Why do episodes end?",
    "Examples",
    "All figures",
]


def test_the_page_of_an_evaluation_answers_all_questions_in_order(tmp_path):
    text, table = write(tmp_path / "out", an_eval(tmp_path / "run", map(with_ids, ALL)))
    found = Headings(text)
    assert [name for level, name in found.headings if level == 2] == QUESTIONS
    levels = [level for level, _ in found.headings]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    assert len(found.alts) == 3 and all(found.alts)
    assert not any(word in text for word in ("http:", "https:", "<script", "<link"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {PAGE, "funnel.png", "use-1.png", "flow-1.png"}
    assert "An error that a later call mended: c/0" in text
    assert "call ran, and right" in table


def test_hostile_episodes_stay_text(tmp_path):
    hostile = "<script>alert(1)</script>\x1b[31m\u202e\x00\ud800"
    turns = [hostile, RIGHT]
    problem = dataclasses.replace(DIRECT.problem, id=hostile, question=hostile)
    made = episode("p", StopReason.ANSWERED, *["".join(turns)])
    made = dataclasses.replace(made, problem=problem, answer=hostile)
    text, _ = write(tmp_path / "out", an_eval(tmp_path / "run", [made], model=hostile))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e\\x00\\ud800" in text


@pytest.mark.parametrize(
    "transcripts",
    [
        [],
        [DIRECT],
        [RAN],
        [episode("p", StopReason.ANSWERED, RIGHT, correct=True, interpreter=False)],
        [episode("p", StopReason.INFRASTRUCTURE, "hm")],
    ],
    ids=["empty", "without a call", "one episode", "text only", "failed"],
)
def test_a_run_with_little_in_it_has_its_page(tmp_path, transcripts):
    text, table = write(tmp_path / "out", an_eval(tmp_path / "run", transcripts))
    assert "Which runs are these?" in text
    scored = any(transcript.scored for transcript in transcripts)
    unknown = "No episode is scored" if transcripts else "The run has no episodes"
    assert table.startswith("| " if scored else unknown)
    assert ("No scored episode has an interpreter." in text) == (
        bool(transcripts) and not (transcripts[0].interpreter and transcripts[0].scored)
    )


def test_runs_side_by_side_that_differ_are_marked(tmp_path):
    paths = [an_eval(tmp_path / str(n), some) for n, some in enumerate(([RAN], [RAN, GUESS]))]
    words = "These runs are not comparable: the problems differ: 1, 2, and 1 in common."
    text, table = write(tmp_path / "out", *paths)
    assert words in text and table.endswith(f"\n\n{words}")
    text, table = write(tmp_path / "again", paths[0], paths[0])
    assert "not comparable" not in text + table


def test_a_training_has_its_curves_and_says_that_it_is_unfinished(tmp_path):
    records = [{"step": n, "reward": 0.1 * n, "env/accuracy": 0.5} for n in (1, 2, 3)]
    path = a_training(
        tmp_path / "run", [(1, RAN), (3, STUBBORN)], {0: [GUESS], 3: [MENDED]}, records, False
    )
    text, _ = write(tmp_path / "out", path)
    assert "The training is unfinished: step 3 is on record." in text
    assert "<caption>Rollouts</caption>" in text and "<caption>Held-out problems</caption>" in text
    assert {"along.png", "curves.png"} <= {p.name for p in (tmp_path / "out").iterdir()}
    supervised = a_training(tmp_path / "sft", records=[{"step": 1, "loss": 2.0}])
    text, _ = write(tmp_path / "sft-out", supervised)
    assert "The figures that the trainer logs" in text and "has no episodes" in text


def test_a_benchmark_of_recovery_has_the_sections_of_its_own_page(tmp_path):
    path = a_recover(tmp_path / "run", [RAN, MENDED], [GUESS, STUBBORN], status="running")
    text, _ = write(tmp_path / "out", path)
    own = write_page([results(path)], tmp_path / "own").read_text(encoding="utf-8")
    sections = [name for level, name in Headings(own).headings if level == 2]
    assert sections and [name for _, name in Headings(text).headings][-len(sections) :] == sections
    assert "The run is unfinished (running)" in text
    assert (tmp_path / "out" / "dose.png").exists()
