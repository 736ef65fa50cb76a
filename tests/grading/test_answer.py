"""The values that an answer commits to, and the verdicts that need no algebra."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.grading import MAX_CHARS, Grader, extract_boxed
from retool_env.grading.answer import MAX_TEXT, expressions, plain_verdict

# --- the content of a box -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{42}", "42"),
        (r"\boxed {42}", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{1 \boxed{2}}", r"1 \boxed{2}"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{ \boxed{5}", "5"),
        (r"} { \boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{4", None),
        (r"\boxed 4", "4"),
        (r"$\boxed 42$.", "42"),
        (r"\boxed\frac{1 }{2} or", r"\frac{1 }{2}"),
        (r"\fbox{4}", "4"),
        (r"\\boxed{5}", "5"),
        (r"x \\ \boxed{5}", "5"),
        (r"\boxed", None),
        (r"\boxed$", None),
        (r"\boxedx", None),
        ("4", None),
        ("", None),
    ],
)
def test_extract_boxed(text, content):
    assert extract_boxed(text) == content


def test_extract_boxed_is_linear_in_hostile_text():
    assert extract_boxed(r"\boxed{" * 200_000) is None
    assert extract_boxed(r"\boxed{" * 100_000 + "}" * 100_000).startswith(r"\boxed{")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("42", ["42"]),
        (r"so $\boxed{42}$.", ["42"]),
        (r"\boxed{1},\boxed{2}", ["1", "2"]),
        (r"\boxed{2} and \boxed{1}", ["2", "1"]),
        (r"\boxed{42} indeed $\boxed{42.}$", ["42"]),
        (r"\boxed{\boxed{7}}", ["7"]),
        (r"\boxed{\boxed{1}, \boxed{2}}", ["1 ,  2"]),
        (r"\boxed{1 \boxed{2}}", ["1  2"]),
        (r"\boxed{\boxed 7}", ["7"]),
        ("", []),
        (r"\boxed{}", []),
        (r"\boxed{1}\boxed{}", []),
        ("$ = **3e2** $.", ["300"]),
        ("1" * MAX_CHARS, ["1" * MAX_CHARS]),
        ("1" * (MAX_CHARS + 1), []),
        ("x" * 50_000 + r"\boxed{5}", ["5"]),  # only the content of the box must be short
        (r"\boxed{" + "1" * (MAX_CHARS + 1) + "}", []),
        ("x" * MAX_TEXT + r"\boxed{5}", []),
        (r"\boxed{1} \boxed{2} " * 30, []),
    ],
)
def test_the_values_that_a_text_commits_to(text: str, values: list[str]) -> None:
    assert expressions(text) == values


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("042", "42", True),
        ("43", "42", False),
        ("1 000", "1000", True),
        ("1/2", "0.5", True),
        (r"\frac{2}{4}", r"\dfrac12", True),
        ("1/2", "1/3", False),
        ("0.333333", "1/3", True),
        ("0.3333", "1/3", False),
        ("0.3333333", "0.3333334", True),
        ("2.0", "2", True),
        ("2.0000001", "2", False),
        ("0.0000004", "0", False),
        ("0.0000001", "0.0000002", False),
        ("1/0", "1", None),
        ("x", "1", None),
        (r"\sqrt{4}", "2", None),
        ("5 cm", "5", None),
    ],
)
def test_plain_numbers_are_compared_at_once(answer: str, gold: str, verdict: bool | None) -> None:
    assert plain_verdict(answer, gold) is verdict


numbers = st.one_of(
    st.integers(-50, 50).map(str),
    st.tuples(st.integers(-9, 9), st.integers(1, 9)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.decimals(-3, 3, places=7).map(str),
    st.sampled_from(["0.333333", "0.3333333", "0.142857", "0.1428571", "2.5", "1.0000001"]),
)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader(workers=1)
    yield grader
    grader.close()


@given(answer=numbers, gold=numbers)
def test_a_worker_has_the_same_verdict_on_plain_numbers(grader, answer: str, gold: str) -> None:
    verdict = plain_verdict(answer, gold)
    if verdict is not None and answer != gold:
        assert grader.compare([[answer], [gold]]) is verdict


@given(st.text(max_size=60))
def test_any_text_commits_to_something_or_nothing(text: str) -> None:
    for value in expressions(text):
        assert value and len(value) <= MAX_CHARS
    extract_boxed("\\boxed" + text)


@given(st.text("ab1{}\\$ ", max_size=20), st.text("xy2 +", min_size=1, max_size=9))
def test_the_last_box_is_found_after_any_text(before: str, content: str) -> None:
    boxed = extract_boxed(f"{before} \\boxed{{{content}}}")
    opened = before.replace("\\{", "").replace("\\}", "")
    if "{" not in opened and not before.endswith("\\"):
        assert boxed == content
