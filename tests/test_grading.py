"""Grading: what is equal, what a hostile answer can't achieve, and that nothing hangs."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from retool_env import grading
from retool_env.grading import Grader, extract_boxed, is_equivalent

DATA = Path(os.environ.get("RETOOL_DATA") or Path(__file__).parents[2] / "shared" / "data")
MATH_FILE = DATA / "math_levels_3_to_5_train.jsonl"
needs_math = pytest.mark.skipif(
    not MATH_FILE.is_file(), reason="RETOOL_DATA has no math_levels_3_to_5_train.jsonl"
)


@pytest.fixture
def impatient():
    grader = Grader(wall_seconds=1.0, memory_mb=512, workers=1)
    yield grader
    grader.close()


# --- what a box holds ---------------------------------------------------------------------------


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
        (r"\boxed 4", None),
        ("4", None),
        ("", None),
    ],
)
def test_extract_boxed(text, content):
    assert extract_boxed(text) == content


def test_extract_boxed_is_linear_in_hostile_text():
    assert extract_boxed(r"\boxed{" * 200_000) is None
    assert extract_boxed(r"\boxed{" * 100_000 + "}" * 100_000).startswith(r"\boxed{")


# --- what is equal ------------------------------------------------------------------------------

EQUAL = [
    ("42", "42"),
    ("042", "42"),
    ("+7", "7"),
    (" -3\n", "-3"),
    ("\N{MINUS SIGN}3", "-3"),
    ("-0", "0"),
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    ("$42$", "42"),
    (r"\(42\)", "42"),
    ("42.", "42"),
    ("$18", "18"),
    ("1" * 1900, "0" + "1" * 1900),
    (r"\boxed{42}", "42"),
    (r"The answer is $\boxed{42}$.", "42"),
    (r"\boxed{\boxed{42}}", "42"),
    (r"\boxed{42} indeed \boxed{42.}", "42"),
    ("42", r"\boxed{42}"),
    ("42.0", "42"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", "1/2"),
    (r"-\frac{2}{3}", r"-\dfrac{2}{3}"),
    ("0.333333", "1/3"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("10!", "3628800"),
    (r"2^{10}", "1024"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\{2,1\}", r"\{1,2\}"),
    (r"2 \text{ or } 1", "1, 2"),
    (r"19 \text{ and }43", "19, 43"),
    (r"\pm 3", "3,-3"),
    ("(1, 2)", "(1,2)"),
    ("[1,2)", r"\left[1, 2\right)"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"5\text{ cm}", "5"),
    (r"90^\circ", "90"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    ("A", r"\text{(A)}"),
    ("Evelyn", r"\text{Evelyn}"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("x = 2 + 3 = 5", "5"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    ("17_8", "17_{8}"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer, gold):
    assert is_equivalent(answer, gold) is True


UNEQUAL = [
    ("", "42"),
    ("   \n", "42"),
    ("", ""),
    ("42", ""),
    (r"\boxed{}", "42"),
    (r"\boxed{}", r"\boxed{}"),
    ("$$", "$$"),
    ("4", "42"),
    ("42", "4"),
    ("-42", "42"),
    ("1000", "1"),
    ("The answer is 42", "42"),
    ("Answer: 42", "42"),
    ("not 42", "42"),
    (r"42 \boxed{", "42"),
    (r"\boxed{41} although 42", "42"),
    ("0.3333", "1/3"),
    ("0.33", "1/3"),
    ("3.14", r"\pi"),
    ("1.41421", r"\sqrt{2}"),
    ("2.0000001", "2"),
    ("0.0", r"\frac{1}{10^9}"),
    ("0.0000004", "0"),
    ("[1,2]", "(1,2)"),
    ("(2,1)", "(1,2)"),
    ("x=5", "y=5"),
    ("x+1", "y+1"),
    ("3", "3t"),
    ("17_8", "17_9"),
    (r"\text{(A)}", r"\text{(B)}"),
    ("0=0", "y = 2x + 1"),
    ("0=1", "x = x + 1"),
    ("\u0663", "3"),
]


@pytest.mark.parametrize(("answer", "gold"), UNEQUAL)
def test_unequal(answer, gold):
    assert is_equivalent(answer, gold) is False


@pytest.mark.parametrize(
    "answer",
    [
        "{a} or {b}",
        "{a} or {b} or 3",
        "{a}, {b}",
        "{a};{b}",
        "{a} {b}",
        "{a}\n{b}",
        "{{{a},{b}}}",
        r"\{{{a},{b}\}}",
        "({a},{b})",
        "[{a},{b}]",
        "x={a}, x={b}",
        "x={a} or x={b}",
        r"x={a} \text{{ or }} x={b}",
        "x={a}={b}",
        "x={a}! x={b}",
        "{a}={b}",
        r"\text{{{a}}} = \text{{{b}}}",
        r"{a} \equiv {b}",
        r"{a} \approx {b}",
        r"{a} \text{{ or maybe }} {{{b}}}",
        r"{a}\mbox{{ or {b}}}",
        r"{a} \ne {b}",
        r"{a} \lor {b}",
        r"{a} \to {b}",
        r"{a}\\{b}",
        r"{a}\quad {b}",
        r"{a} \le x \le {b}",
        r"x \in \{{{a},{b}\}}",
        r"\frac{{{a}+{b}}}{{2}} \pm \frac{{{b}-{a}}}{{2}}",
        r"\boxed{{{a}}}\boxed{{{b}}}",
        r"\boxed{{{a}}} or \boxed{{{b}}}",
        r"\boxed{{{a} \text{{ or }} {b}}}",
        "final answer is ${a}$. I hope, or the final answer is ${b}$. I hope",
    ],
)
def test_a_list_of_alternatives_wins_for_none_of_them(answer):
    text = answer.format(a="5", b="7")
    assert not is_equivalent(text, "5")
    assert not is_equivalent(text, "7")


# --- any text, any time -------------------------------------------------------------------------

TOKENS = (
    r"\boxed{ \frac{ \sqrt{ \text{ } { ^ _ ( ) [ ] , ; = < + - * / ! $ % & | \ \\ 0 1 42 x . "
    r"\pm \cup \in \infty \int \sum \left( \right) or and \ldots \approx é ∞"
)
latex = st.lists(st.sampled_from(TOKENS.split()), max_size=12).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=40) | latex, st.text(max_size=40) | latex)
@example("\ud800", "1")
@example("\0", "\0 ")
@example("1\n", "1\n2")
def test_any_two_strings_get_a_verdict(answer, gold):
    assert is_equivalent(answer, gold) in (True, False)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**40), 10**40), st.integers(-(10**40), 10**40))
def test_integers_are_compared_by_value(a, b):
    assert is_equivalent(str(a), str(b)) == (a == b)
    assert is_equivalent(f"{a:,}", f"\\boxed{{{a}}}")


def test_plain_integers_need_no_process():
    grader = Grader()
    assert grader.is_equivalent("042", "42") and not grader.is_equivalent("43", "42")
    assert not grader._all


BOMBS = [
    "9^{9^{9^9}}",
    r"\boxed{10^{10^{10}}}",
    "(10^9)!",
    "(x+y+z)^{100}",
    r"\sum_{i=1}^{10^9} i^i",
    "(" * 300 + "1" + ")" * 300,
    "{" * 900 + "1" + "}" * 900,
    "2" * 100_000 + "+x",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_wrong_and_the_next_answer_is_graded(impatient, bomb):
    assert not impatient.is_equivalent(bomb, "42")
    assert impatient.is_equivalent("1/2", "0.5")


def test_memory_is_bounded(impatient):
    assert impatient.is_equivalent("1/2", "0.5")
    (worker,) = impatient._all
    limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
    assert f"{512 << 20}" in next(x for x in limits.splitlines() if "address space" in x)


def test_a_worker_that_has_grown_is_replaced_without_a_wrong_verdict():
    grader = Grader(memory_mb=115, workers=1)  # more than half of it is taken from the start
    processes = set()
    for i in range(1, 4):
        assert grader.is_equivalent(f"{i}/7", rf"\frac{{{2 * i}}}{{14}}")
        processes |= {worker.process.pid for worker in grader._all}
    assert len(processes) == 3
    grader.close()


def test_a_killed_worker_is_replaced(impatient):
    assert impatient.is_equivalent("1/2", "0.5")
    (worker,) = impatient._all
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    assert impatient.is_equivalent("1/2", "0.5")
    assert worker not in impatient._all


def test_threads_share_workers():
    grader = Grader(workers=2)
    verdicts = {}

    def grade(i):
        verdicts[i] = [grader.is_equivalent(f"{i}/7", rf"\frac{{{j}}}{{7}}") for j in range(6)]

    threads = [threading.Thread(target=grade, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {i: [i == j for j in range(6)] for i in range(6)}
    assert len(grader._all) <= 2
    grader.close()


def test_close_ends_the_processes_and_a_fork_starts_its_own(impatient):
    assert impatient.is_equivalent("1/2", "0.5")
    (worker,) = impatient._all
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            foreign = worker in impatient._all
            right = impatient.is_equivalent("1/2", "0.5") and not impatient.is_equivalent("1", "x")
            own = next(iter(impatient._all)).process.pid != worker.process.pid
            impatient.close()
            os.write(write, b"ok" if right and own and not foreign else b"no")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert os.read(read, 10) == b"ok"
    os.close(read)
    assert worker.process.poll() is None  # the child left it alone
    assert impatient.is_equivalent("2/4", "0.5") and impatient._all == {worker}
    impatient.close()
    assert worker.process.poll() is not None


def test_a_worker_below_a_large_process_lives_on():
    """A trainer holds gigabytes, and the peak of whoever starts a process is inherited by it."""
    program = (
        "ballast = b'x' * (700 << 20)\n"
        "from retool_env.grading import Grader\n"
        "grader = Grader(memory_mb=1024, workers=1)\n"
        "assert grader.is_equivalent('1/2', '0.5')\n"
        "(first,) = grader._all\n"
        "assert grader.is_equivalent('2/4', '0.5') and grader._all == {first}\n"
        "assert first.process.poll() is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_broken_installation_is_an_error_and_not_a_wrong_answer(monkeypatch, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("print('ImportError: no math_verify')")
    monkeypatch.setattr(grading, "_WORKER_SCRIPT", script)
    with pytest.raises(grading.GraderUnavailable, match="no math_verify"):
        Grader().is_equivalent("1/2", "0.5")


# --- real answers -------------------------------------------------------------------------------


def math_golds():
    with MATH_FILE.open() as file:
        golds = {json.loads(line)["answer"] for line in file}
    return sorted(gold for gold in golds if gold and not gold.lstrip("-").isdigit())


@needs_math
def test_real_answers_equal_themselves_however_they_are_set():
    for gold in random.Random(1).sample(math_golds(), 60):
        assert is_equivalent(gold, gold)
        assert is_equivalent(rf"\boxed{{\displaystyle {gold}}}", gold), gold


@needs_math
def test_other_real_answers_are_wrong():
    golds = math_golds()
    rng = random.Random(2)
    for _ in range(150):
        answer, gold = rng.sample(golds, 2)
        assert not is_equivalent(answer, gold), (answer, gold)
