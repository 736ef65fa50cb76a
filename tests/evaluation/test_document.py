"""A page escapes all text, needs no other file, and says the same in Markdown."""

import base64

import pytest

from retool_env.errors import SettingsError
from retool_env.evaluation.document import Document, check_place

HOSTILE = '<script>alert(1)</script>" onload="x'


def whole_page() -> Document:
    page = Document(HOSTILE)
    page.heading(HOSTILE, 3, anchor=HOSTILE)
    page.paragraph(HOSTILE, small=True)
    page.warning(HOSTILE)
    page.listing([HOSTILE])
    page.links([(HOSTILE, HOSTILE)])
    page.table([[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], HOSTILE)
    page.verbatim(HOSTILE, HOSTILE)
    page.picture("curve", b"PNG", HOSTILE, HOSTILE)
    with page.details(HOSTILE):
        page.paragraph(HOSTILE)
    return page


def test_no_text_becomes_markup():
    written = whole_page().html()
    assert "<script" not in written
    assert 'onload="' not in written
    assert "&lt;script&gt;" in written


def test_a_page_allows_neither_scripts_nor_the_network():
    written = whole_page().html()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in written
    assert f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}" in written


def test_pictures_lie_beside_the_page(tmp_path):
    page = whole_page()
    path = page.write(tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8") == page.html()
    assert (tmp_path / "new" / "curve.png").read_bytes() == b"PNG"


def test_a_closed_part_holds_the_parts_of_its_block_only():
    page = Document("title")
    page.paragraph("before")
    with page.details("more"):
        page.paragraph("inside")
    page.paragraph("after")
    written = page.html()
    inside = written[written.index("<details>") : written.index("</details>")]
    assert "inside" in inside
    assert "before" not in inside and "after" not in inside


def test_markdown_has_every_part_in_order():
    page = Document("Two models")
    page.heading("Accuracy")
    page.table([["", "accuracy"], ["A", "50 %"]])
    page.listing(["one", "two"])
    page.picture("curve", b"PNG", "A curve.")
    written = page.markdown()
    parts = ["# Two models", "## Accuracy", "| A", "- one\n- two", "![A curve.](curve.png)"]
    assert sorted(parts, key=written.index) == parts


def test_hidden_characters_are_shown_and_written_as_a_file(tmp_path):
    page = Document("a\x1b[31m\u202e")
    page.verbatim("one\n\ttwo\x00\ud800 `` ``` end", "text")
    page.table([["", "a|b"], ["row", "\u200b"]])
    written = page.write(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a\\x1b[31m\\u202e" in written and "one\n\ttwo\\x00\\ud800" in written
    assert "````text\none" in page.markdown() and "a\\|b" in page.markdown()


def test_every_cell_of_a_heading_has_its_scope_and_an_empty_corner_is_no_heading():
    page = Document("title")
    page.table([["", "one"], ["row", "1"]], "Caption")
    written = page.html()
    assert '<thead><tr><td></td><th scope="col">one</th></tr></thead>' in written
    assert '<th scope="row">row</th><td>1</td>' in written
    assert 'aria-label="Caption"' in written and "<caption>Caption</caption>" in written


def test_a_tag_in_a_text_is_no_html_in_markdown():
    page = Document(r"\<img src=x>")
    page.table([["", "</td>"], ["<!--", "p < 0.05"]], "<b>")
    page.listing(["<i>"])
    written = page.markdown()
    assert "<" not in written.replace("p < 0.05", "") and "&lt;img src=x>" in written
    assert "p < 0.05" in written


@pytest.mark.parametrize("name", ["page.html", "page.json"])
def test_a_file_of_the_users_is_not_overwritten_and_an_earlier_page_is(tmp_path, name):
    page = tmp_path / "page.html"
    (tmp_path / name).write_text("mine")
    with pytest.raises(SettingsError, match=f"{name} exists already"):
        check_place(page, ["page.json"])
    Document("earlier").write(page)
    (tmp_path / "page.json").write_text("of the earlier page")
    check_place(page, ["page.json"])
