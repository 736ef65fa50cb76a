"""Reading programs from model turns: one table, and properties of any text."""

from __future__ import annotations

import ast
import threading
import time
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retool_env.protocol.program import (
    FORMS,
    MOST_CHARACTERS,
    compiles,
    read_one_fence,
    read_program,
)

LOOP = "for i in range(2):\n    print(i)"
MARKED = "print('a\u200db')"  # a joiner in a string, as in emoji
QUOTED = "s = '''\n```\nx\n```\n'''\nprint(s)"  # a fence in a string
UNICODE = ["print(“a”)", "print(1)\xa0", "print(\xa01)", "print(2×3)"]

TABLE = [
    # A program that compiles is never changed.
    ("a program", "print(1)", "print(1)", "plain"),
    ("blank lines around", "\n \t\nprint(1)\n\n", "print(1)", "plain"),
    ("a line that goes on", "x = 1 + \\\n  1", "x = 1 + \\\n  1", "plain"),
    ("a last line that goes on", "x = 1 \\\n\n", "x = 1 \\\n\n", "plain"),
    ("a joiner in a string", MARKED, MARKED, "plain"),
    ("a BOM in a string", "print('\ufeff')", "print('\ufeff')", "plain"),
    ("a fence in a string", QUOTED, QUOTED, "plain"),
    ("a prompt in a string", "s = '''\n>>> 1\n'''", "s = '''\n>>> 1\n'''", "plain"),
    ("tildes that are operators", "~~~1", "~~~1", "plain"),
    ("an escape that Python warns of", r"print('\d')", r"print('\d')", "plain"),
    ("nothing", "", "", "plain"),
    ("a comment", "# nothing", "# nothing", "plain"),
    # Marks.
    ("a BOM", "\ufeffprint(1)", "print(1)", "mended:marks"),
    ("a zero-width space", "print(\u200b1)", "print(1)", "mended:marks"),
    ("a mark of direction", "\u200eprint(1)\u2069", "print(1)", "mended:marks"),
    ("marks alone", "\ufeff\u200b", "", "mended:marks"),
    ("a BOM ahead of a fence in a string", "\ufeff" + QUOTED, QUOTED, "mended:marks"),
    # Fences.
    ("a fence", "```python\nprint(1)\n```", "print(1)", "fenced"),
    ("py", "```py\nprint(1)\n```", "print(1)", "fenced"),
    ("Python", "``` Python \nprint(1)\n```", "print(1)", "fenced"),
    ("python with a title", "```python title='a'\nprint(1)\n```", "print(1)", "fenced"),
    ("without a tag", "```\nprint(1)\n```", "print(1)", "fenced"),
    ("line ends of Windows", "```python\r\nprint(1)\r\n```\r\n", "print(1)", "fenced"),
    ("one line", "```python print(1)```", "print(1)", "fenced"),
    ("one line, tabulated", "```python\tprint(1)```", "print(1)", "fenced"),
    ("one line in brackets", "```python (1)```", "(1)", "fenced"),
    ("one line, empty", "```python```", "", "fenced"),
    ("one line without a tag", "```print(1)```", "print(1)", "fenced"),
    ("one line with blanks", "``` x = 1 ```", "x = 1", "fenced"),
    ("one line amid prose", "Let me run ```python print(1)```.", "print(1)", "fenced"),
    ("four backticks", "````python\nprint(1)\n````", "print(1)", "fenced"),
    ("a longer end", "```python\nprint(1)\n`````", "print(1)", "fenced"),
    ("tildes", "~~~python\nprint(1)\n~~~", "print(1)", "fenced"),
    ("tildes in one line", "~~~python print(1)~~~", "print(1)", "fenced"),
    ("backticks among tildes", "~~~\ns = '''\n```\n'''\n~~~", "s = '''\n```\n'''", "fenced"),
    ("prose before", "So:\n\n```python\nprint(1)\n```", "print(1)", "fenced"),
    ("prose in the same line", "So: ```python\nprint(1)\n```", "print(1)", "fenced"),
    ("prose around", "So:\n```\nprint(1)\n```\nwhich gives 1.", "print(1)", "fenced"),
    ("indented with its program", "  ```python\n  print(1)\n  ```", "print(1)", "fenced"),
    ("indented alone", f"  ```python\n{LOOP}\n  ```", LOOP, "fenced"),
    ("its program indented", f"```\n  {LOOP.replace('\n', '\n  ')}\n```", LOOP, "fenced"),
    ("prompts inside", "```python\n>>> print(1)\n1\n```", "print(1)", "fenced"),
    ("a BOM before", "\ufeff```python\nprint(1)\n```", "print(1)", "fenced"),
    ("a mark inside that is in the way", "```\nprint(\u200b1)\n```", "print(1)", "fenced"),
    ("a mark inside that is not", f"```\n{MARKED}\n```", MARKED, "fenced"),
    ("two", "```python\nx = 1\n```\nand\n```py\nprint(x)\n```", "x = 1\nprint(x)", "fenced"),
    ("with output", "```python\nprint(1)\n```\n```output\n1\n```", "print(1)", "fenced"),
    ("output in one line", "```python\nprint(1)\n```\n```output 1 2```", "print(1)", "fenced"),
    ("code in prose beside it", "Like ```x```:\n```\nprint(1)\n```", "print(1)", "fenced"),
    ("a function in two", "```\ndef f():\n```\n```\n    return 1\n```",
     "def f():\n    return 1", "fenced"),
    ("one of two indented", "```\nx = 1\n```\n  ```\n  x\n  ```", "x = 1\nx", "fenced"),
    ("not closed", "```python\nprint(1)", "print(1)", "fenced"),
    ("closed in the last line", "```python\nprint(1)```", "print(1)", "fenced"),
    ("closed ahead of prose", "```python\nprint(1)\n``` gives 1", "print(1)", "fenced"),
    ("closed and not opened", "print(1)\n```", "print(1)", "fenced"),
    ("a mark in a line", "```python\ns = '```'\nprint(s)\n```", "s = '```'\nprint(s)", "fenced"),
    ("the same, not closed", "```python\ns = '```'\nprint(s)", "s = '```'\nprint(s)", "fenced"),
    ("a mark in a line of its own", f"```python\n{QUOTED}\n```", QUOTED, "fenced"),
    ("a longer mark around it", f"````python\n{QUOTED}\n````", QUOTED, "fenced"),
    ("nothing inside", "```python\n```", "", "fenced"),
    ("opened at the end", "So:\n```python", "", "fenced"),
    ("an error inside", "So:\n```python\nprint(1\n```", "print(1", "fenced"),
    ("an error inside, not closed", "So:\n```python\nprint(1", "print(1", "fenced"),
    ("opened twice", "```py\n```py\nprint(1)", "```py\nprint(1)", "fenced"),
    ("output alone", "```output\n42\n```", "```output\n42\n```", "plain"),
    # Prompts.
    ("prompts", ">>> x = 1\n>>> x", "x = 1\nx", "mended:prompts"),
    ("prompts and output", ">>> print(1)\n1\n>>> 2\n2\n... 3", "print(1)\n2", "mended:prompts"),
    ("a line break that is not Python's", ">>> s = '\u2028'\r\n>>> s",
     "s = '\u2028'\ns", "mended:prompts"),
    ("a block", f">>> {LOOP.replace('\n', '\n... ')}\n...\n0\n1", LOOP, "mended:prompts"),
    ("indented prompts", "  >>> x = 1\n  >>> x\n  1", "x = 1\nx", "mended:prompts"),
    ("marks among prompts", "\ufeff>>> print(1)", "print(1)", "mended:prompts"),
    ("prompts without a blank", ">>>x = 1\n>>>x", "x = 1\nx", "mended:prompts"),
    ("a prompt alone", ">>>", "", "mended:prompts"),
    ("an error after a prompt", ">>> print(1", ">>> print(1", "plain"),
    ("a line ahead of prompts", "x\n>>> x", "x\n>>> x", "plain"),
    # Indentation.
    ("indented", "  print(1)", "print(1)", "mended:dedent"),
    ("indented lines", f"\n  {LOOP.replace('\n', '\n  ')}\n", LOOP, "mended:dedent"),
    ("indented by tabs", "\tx = 1\n\n\tprint(x)", "x = 1\n\nprint(x)", "mended:dedent"),
    ("marks and indentation", "\ufeff  print(1)", "print(1)", "mended:dedent"),
    ("a joiner in an indented string", f"  {MARKED}", MARKED, "mended:dedent"),
    # Texts that no rule mends.
    ("an error", "print(1", "print(1", "plain"),
    ("an indented error", "  print(1", "  print(1", "plain"),
    ("an error beside a BOM", "\ufeffprint(1", "\ufeffprint(1", "plain"),
    ("marks in strings", "x = s.split('```')[1]\ny = (", "x = s.split('```')[1]\ny = (", "plain"),
    ("a NUL", "print(1)\0", "print(1)\0", "plain"),
    ("a lone surrogate", "print('\ud800')", "print('\ud800')", "plain"),
    ("nested too deep", "(" * 5_000, "(" * 5_000, "plain"),
    *[(f"typography {text!r}", text, text, "plain") for text in UNICODE],
]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "program", "form"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_every_way_to_write_a_program_has_one_meaning(written, program, form):
    assert read_program(written) == (program, form)


def test_the_table_has_every_form_but_that_of_a_call_that_cant_be_read():
    assert {row[3] for row in TABLE} == set(FORMS) - {"unread"}


# --- any text, any program ----------------------------------------------------------------------

PIECES = [
    "```", "````", "~~~", "python", "py", "output", "\n", "\n", " ", "  ", "\t", ">>> ", "... ",
    ":", "(", "x", "1", "print(1)", "if x:", "    y", "'", '"""', "\\", "#", "\ufeff", "\u200b",
    "\0", "\r\n", "```python\n", "\n```\n",
]  # fmt: skip
ANY = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)

LINES = st.sampled_from(
    ["x = 1", "print('a b')", LOOP, "if x:\n    y = [\n        1]\n", "# note", "s = 'é\u200d'", "",
     "def f(a):\n\treturn a"]
)  # fmt: skip
PROGRAMS = st.lists(LINES, min_size=1, max_size=5).map("\n".join).map(lambda text: text.strip("\n"))


@given(ANY)
@example("```\n" * 5)
def test_reading_is_total_and_changes_nothing_that_compiles(text):
    program, form = read_program(text)
    assert form in FORMS and form != "unread"
    if compiles(text):
        assert form == "plain" and program in text
        assert ast.dump(ast.parse(program)) == ast.dump(ast.parse(text))
        assert text.strip() == program.strip()
    elif form == "plain":
        assert not compiles(program) and program in text
    elif form != "fenced":
        assert compiles(program)


@given(PROGRAMS)
def test_a_program_is_read_out_of_all_that_may_be_around_it(program):
    assert read_program(program) == (program, "plain")
    assert read_program(f"\ufeff{program}").text == program or "\u200d" in program
    prompts = [
        ("... " if line[:1].isspace() or line[:1] == "]" else ">>> ") + line
        for line in program.splitlines()
    ]
    if program:
        assert read_program("\n".join(prompts)) == (program, "mended:prompts")
        indented = "\n".join(f"    {line}" if line else "" for line in program.splitlines())
        expected = "plain" if compiles(indented) else "mended:dedent"  # a comment may be indented
        assert read_program(indented).form == expected
        assert expected == "plain" or read_program(indented).text == program
    for mark in ("```", "`````", "~~~"):
        for tag in ("", "python", "py"):
            for ahead in ("", "So:\n", "  "):
                fence = f"{ahead}{mark}{tag}\n{program}\n{mark}"
                assert read_program(fence) == (program, "fenced")
                assert read_program(f"{fence}\nSo it is.") == (program, "fenced")


@given(st.lists(PROGRAMS, min_size=1, max_size=3))
def test_fences_are_joined_in_order(programs):
    text = "\nthen\n".join(f"```python\n{each}\n```\n```output\n1\n```" for each in programs)
    assert read_program(text) == ("\n".join(programs).strip("\n"), "fenced")


# --- the check in this process ------------------------------------------------------------------


def test_longer_texts_are_not_compiled():
    longest = "x = 1\n" * (MOST_CHARACTERS // 6)
    assert read_program(f"  {longest}".rstrip()).form == "plain"
    assert read_program("  x = 1\n" * (MOST_CHARACTERS // 8 - 1)).form == "mended:dedent"
    too_long = "  x = 1\n" * (MOST_CHARACTERS // 8 + 1)
    assert read_program(too_long) == (too_long.rstrip("\n"), "plain")
    program = "x = 1\n" * (MOST_CHARACTERS // 6 + 1) + "("
    assert read_program(f"```python\n{program}\n```") == (program, "fenced")


@pytest.mark.parametrize(
    "piece",
    [*"([{-", "not ", "f(", "a.", "if x:\n", "lambda: ", "a if b else ", 'f"{', "x**", "a,"],
)
def test_texts_that_are_nested_deep_are_read(piece):
    for count in (150, 3_000, MOST_CHARACTERS // len(piece)):
        for end in ("", "1", "\n", ")" * count):
            assert read_program((piece * count + end)[:MOST_CHARACTERS]).form in FORMS


WARNED = [r"print('\d')", "1 is 1", "assert (1, 'a')", "~True", "'a'()", "[1, 2]['a']", "0in []"]


@pytest.mark.parametrize("action", ["error", "always"])
def test_what_python_warns_of_is_neither_shown_nor_an_error(action):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter(action)
        before = list(warnings.filters)
        for program in WARNED:
            assert compiles(program)
        assert not shown and warnings.filters == before


def test_threads_change_no_filter_of_warnings_and_each_other_nothing():
    before = list(warnings.filters)
    found, stop = [], threading.Event()

    def read():
        for _ in range(300):
            found.extend(map(compiles, WARNED))

    def disturb():
        while not stop.is_set():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                time.sleep(0.001)

    readers = [threading.Thread(target=read) for _ in range(4)]
    disturber = threading.Thread(target=disturb)
    disturber.start()
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    disturber.join()
    assert found == [True] * (4 * 300 * len(WARNED))
    assert warnings.filters == before


# --- records from before ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "program", "form"),
    [
        ("\nprint(1)\n", "print(1)", "plain"),
        ("\n    indented\n", "    indented", "plain"),
        ("\n```python\nprint(1)\n```\n", "print(1)", "fenced"),
        ("```any\nprint('```')\n```", "print('```')", "fenced"),
        ("```\nprint(1)", "print(1)", "fenced"),
        ("So:\n```\nprint(1)\n```", "So:\n```\nprint(1)\n```", "plain"),
        (">>> 1", ">>> 1", "plain"),
    ],
)
def test_a_record_from_before_is_read_as_it_was_then(written, program, form):
    assert read_one_fence(written) == (program, form)
