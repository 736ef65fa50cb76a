"""Nothing in a shown text steers the reader's screen."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from retool_env.printable import one_line, printable

ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_no_control_character_but_line_feed_and_tab_and_no_direction_mark_is_left(text):
    shown = printable(text)
    left = {unicodedata.category(sign) for sign in shown if sign not in "\n\t"}
    assert not left & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(shown) & set("\u061c\u200e\u200f\u202a\u202b\u202d\u202e\u2066\u2067\u2068")
    shown.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_letters_numbers_and_signs_of_all_scripts_stay_as_they_are(text):
    assert printable(text) == text


def test_the_escapes_are_those_of_python():
    assert printable("a\x1b[2J\u202eb\x9b\r") == r"a\x1b[2J\u202eb\x9b\x0d"


@given(ANY, st.integers(1, 50))
def test_one_line_has_at_most_its_length(text, limit):
    line = one_line(text, limit)
    assert len(line) <= limit and len(line.splitlines()) <= 1


def test_a_cut_line_says_so():
    assert one_line("x" * 9, 5) == "xxxx…" and one_line(" a \n b ", 5) == "a b"
