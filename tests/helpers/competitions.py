"""Made-up problems in the columns and types of the sets of 2025 and 2026."""


def arena(answer, kinds=("Algebra",)):
    """A row of MathArena's competitions."""
    return {"problem_idx": 1, "problem": "?", "answer": answer, "problem_type": list(kinds)}


def olym(answer):
    return {"problem": "?", "answer": answer, "subject": "Algebra"}


AMO_INSTRUCTIONS = (
    "\nAfter solving the above problem, please output your answer in this form:\n"
    r"### The final answer is: $\boxed{<your answer>}$"
)


def amo_row(answer, kind, prompt="?" + AMO_INSTRUCTIONS):
    return {"question_id": 1, "prompt": prompt, "answer": answer, "answer_type": kind}


# The id, its settings, its file in RETOOL_DATA, a row, a right and a wrong answer, and the
# beginning of the problems' ids.
CASES = [
    ("AIME26", {}, "aime26", arena(42), "042", "43", "aime/2026"),
    (
        *("HMMT-Feb25", {}, "hmmt_feb25", arena(r"\frac{3+\sqrt{17}}{2}, 5")),
        *(r"5, \frac{3}{2}+\frac{\sqrt{17}}{2}", "5", "hmmt/2025-02"),
    ),
    (
        *("HMMT-Nov25", {}, "hmmt_nov25", arena(r"12\sqrt{3}-\pi")),
        *(r"-\pi+\sqrt{432}", r"12\sqrt{3}-3.14", "hmmt/2025-11"),
    ),
    (
        *("HMMT-Feb26", {}, "hmmt_feb26", arena(r"\left(\frac{1}{2},-3\right)", ("NT", "Geo"))),
        *("(0.5, -3)", "(-3, 0.5)", "hmmt/2026-02"),
    ),
    ("BRUMO25", {}, "brumo25", arena("2^{99}"), "2 * 2^{98}", "2^{98}", "brumo/2025"),
    (
        *("Apex25", {}, "apex25"),
        {"problem_idx": 1, "source": "a cup", "problem": "?", "answer": "1/2"},
        *("1/2", "-1/2", "apex/2025"),
    ),
    ("Apex-Shortlist", {}, "apex_shortlist", arena("100!"), "99! * 100", "99!", "apex/shortlist"),
    ("BeyondAIME", {}, "beyondaime", {"problem": "?", "answer": 1729}, "1729", "1", "beyondaime"),
    ("AMO", {}, "amo_bench", amo_row(r"\boxed{\frac{7}{3}}", "number"), "7/3", "3/7", "amo"),
    ("AMO", {}, "amo_bench", amo_row(r"$\boxed{\{2,3,5\}}$", "set"), r"\{5,2,3\}", "2,3", "amo"),
    (
        *("AMO", {}, "amo_bench", amo_row(r"\boxed{2^{n+1}-n}", "variable")),
        *("2 * 2^n - n", "2^n - n", "amo"),
    ),
    ("OlymMATH", {}, "olymmath_en_hard", olym("[1,2)"), "1 <= x < 2", "[1,2]", "olymmath/en-hard"),
    (
        *("OlymMATH", {"level": "easy"}, "olymmath_en_easy", olym("$7$")),
        *("7", "8", "olymmath/en-easy"),
    ),
    (
        *("OlymMATH", {"language": "zh"}, "olymmath_zh_hard", olym(r"\frac{2}{3}")),
        *("2/3", "0.67", "olymmath/zh-hard"),
    ),
    (
        *("OlymMATH", {"language": "zh", "level": "easy"}, "olymmath_zh_easy", olym("30^\\circ")),
        *("30", "60", "olymmath/zh-easy"),
    ),
    (
        *("MATH500", {}, "math500"),
        {
            **{"problem": "?", "solution": r"so \boxed{\left( 3, \frac{\pi}{2} \right)}"},
            **{"answer": r"\left( 3, \frac{\pi}{2} \right)", "subject": "Precalculus"},
            **{"level": 2, "unique_id": "test/precalculus/1.json"},
        },
        *("(3, pi/2)", "(pi/2, 3)", "math500"),
    ),
]
