"""The second reading of texts: which forms have one, and which texts have none."""

import pytest

from retool_env.grading.worker.readings import second_reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"x < 1 \text{ or } x > 2", r"(-\infty, 1) \cup (2, \infty)"),
        (r"x \leq 1, or 3 \geqslant x > 2", r"(-\infty, 1] \cup (2, 3]"),
        (r"2 < t \text{ or } 1 > t", r"(2, \infty) \cup (-\infty, 1)"),
        (r"\left\{x \mid 1 < x \le 2\right\}", "(1, 2]"),
        (r"\{a \in \mathbb{R} : a < -1 \text{ or } a > 1\}", r"(-\infty, -1) \cup (1, \infty)"),
        (r"\left\langle 1, 2 \right\rangle", "( 1, 2 )"),
        (r"2 C_5^2", r"2 \cdot \binom{5}{2}"),
        (r"C^5_2 + x", r"\binom{5}{2} + x"),
        (r"\mathrm{C}_{n+1}^{k}", r"\binom{n+1}{k}"),
        (r"{}_{n}C_{k}", r"\binom{n}{k}"),
        ("^5C_2", r"\binom{5}{2}"),
        ("C(2n, n)", r"\binom{2n}{n}"),
        (r"(x,y) \in \{(1,2), (3,4)\}", r"\{(1,2), (3,4)\}"),
        (r"n \in {2,3}", r"\{2,3\}"),
        (r"(\pm 1, 2)", "( 1, 2), (- 1, 2)"),
        (r"\{ (1,2) \}", "(1,2)"),
    ],
)
def test_a_second_reading(text: str, expected: str) -> None:
    assert second_reading(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "x < 1", "2 or 3", "x < 1 or 3", "x < 1 or y > 2", "1 < x > 2 or x > 3"),
        *("x < 1, x > 2", "x < 1 and x > 2", r"x < 1 \text{ or } x > 2 > 3", "5 or x < 1"),
        *("(x,y)=(1,2)", "(x,y)=(1,2) or (y,x)=(3,4)", "(x,y)=(1,2) or 5", "(1,2) or (3,4)"),
        *(
            r"(\pm 1, \pm 2)",
            r"(\pm 1)",
            r"1 \pm 2",
            r"\{1,2\}",
            r"\{(1,2),(3,4)\}",
            r"\{x \mid 5\}",
        ),
        *(r"\{x \mid 1 < y < 2\}", r"x \in (1,2)", r"x + 1 \in \{2\}"),
    ],
)
def test_other_texts_have_one_reading(text: str) -> None:
    assert second_reading(text) is None
