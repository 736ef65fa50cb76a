"""Values with names: which texts give points, and in which order the values stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.grading.worker.named import are_roots, has_mixed_names, plain, points, renamed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = 2, x = 1", "(1, 2)"),
        (r"B = 4 \text{ and } A = 3", "(3, 4)"),
        (r"\beta = 2, \alpha = 1", "(1, 2)"),
        ("x_{10} = 3, x_2 = 1", "(1, 3)"),
        ("h = 3, r = 2", "(3, 2)"),  # no order that everybody knows
        ("CD = 4, AB = 9", "(4, 9)"),
        (r"\left(b, a\right) = \left(4, 3\right)", "(4, 3)"),
        (r"y = 1, x = 2 \text{ or } y = 3, x = 4", "(2, 1), (4, 3)"),
        ("(x,y) = (1,2) or (y,x) = (3,4)", "(1, 2), (4, 3)"),
        ("(x,y) = (f(1,2), 3)", "(f(1,2), 3)"),
    ],
)
def test_points_have_the_order_of_their_names(text: str, expected: str) -> None:
    assert plain(points(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "x = 5", "(1, 2)", "2, 3", "x = 2, 3", "x = 2, x = 3", "x = 1 = 1, y = 2"),
        *("x < 1, y = 2", "(x,y) = (1,2,3)", "(x,x) = (1,2)", "x = 1, y = 2 or x = 3"),
        *("x = 1, y = 2 or x = 3, z = 4", "x + y = 3, x - y = 1", "(x,y) = (1,2),(3,4)"),
    ],
)
def test_other_texts_are_not_points(text: str) -> None:
    assert points(text) == []


@given(st.permutations([("x", "1"), ("y", "2"), ("z", "3")]))
def test_the_written_order_of_ordered_names_does_not_matter(parts: list[tuple[str, str]]) -> None:
    text = ", ".join(f"{name} = {value}" for name, value in parts)
    assert plain(points(text)) == "(1, 2, 3)"


def test_alternatives_with_different_names() -> None:
    assert has_mixed_names("x = 2 or y = 3") and has_mixed_names(r"x = 2 \text{ or } 3, y = 4")
    for text in ("x = 2 or x = 3", "x_1 = 2 or x_2 = 3", "x = 2 or 3", "x = 2, y = 3", "2 or 3"):
        assert not has_mixed_names(text)


def test_points_are_compared_by_name() -> None:
    assert renamed({"b": "4", "a": "3"}, ["a", "b"]) == {"a": "3", "b": "4"}
    assert renamed({"A": "3", "B": "4"}, ["b", "a"]) == {"b": "4", "a": "3"}
    assert renamed({"x": "3", "y": "4"}, ["a", "b"]) is None
    assert renamed({"A": "3", "a": "4"}, ["a", "b"]) is None


def test_roots_have_one_letter() -> None:
    assert are_roots({"x_1": "1", "x_2": "2"}) and not are_roots({"x": "1", "y": "2"})
