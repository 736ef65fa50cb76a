"""Detection: does the model notice that a result is false? Stated rules on its next turn.

A turn *notices* if it doubts the result, or checks it: it calls the result odd, wrong, impossible,
missing or out of line with a known fact, or it announces a check of the result or a second run.
The rules read English prose; programs are left out, and are compared apart: a next call that equals
the call at the fork is also a check.

The rules can't tell a routine check from a doubt. So detection is also given net of the control
arm, in which the result is true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from retool_env.faults import KINDS
from retool_env.metrics.causal.continuation import (
    CONTROL,
    Cells,
    Continuation,
    arms_of,
    eligible,
)
from retool_env.metrics.causal.figure import CausalFigure, arm_difference, arm_share
from retool_env.protocol import CODE_CLOSE, CODE_OPEN
from retool_env.protocol.calls import CALL_CLOSE, CALL_OPEN

_RESULT = (
    r"(?:this|that|(?:the|no|its) (?:[\w']+ ){0,4}?"
    r"(?:result|output|value|number|answer|total|list|order|sign)s?)"
)
RULES = {
    "doubt": r"\b(?:discrepanc\w+|s[ck]eptical|unsure|not (?:so |entirely |quite |completely )?"
    r"(?:sure|certain|confident)|(?:not|n't|never|rather not) (?:rely|believe|trust)|questionable"
    r"|misleading|untrustworthy|puzzl\w+|confus(?:ed|ing)|unlikely|unusual|unreasonable|unreliable"
    r"|fishy)\b|^\W*huh\b",
    "too far": r"\b(?:that|this|it|result|value|output|number|count|total|sum|probability) "
    r"(?:just )?"
    r"(?:seems|looks|feels|sounds|is) (?:far |much |way |rather |a bit |too |very )*(?:low|high"
    r"|small"
    r"|large|big|long|short)\b|\b(?:exceeds?|violates?|lacks?)\b|\b(?:is|are) never (?:negative"
    r"|zero)"
    r"|\b(?:yet|but) (?:we|i|it|this|the (?:result|output|program)) (?:got|get|gives?|gave|shows?"
    r"|showed|printed|see|says?)\b",
    "again": r"\b(?:try|compute|calculate|run|evaluate|execute|do|count|derive|check|look) (?:it"
    r"|this"
    r"|that|them|(?:the )?[\w ]{0,20})? ?(?:once more|again|by hand|manually|another way"
    r"|(?:in )?a different way|differently|more carefully|with exact \w+)\b|\bmore (?:digits"
    r"|carefully)"
    r"|\bexplicitly\b|\banother way\b|\btry again\b|\bearlier (?:script|program|run|call|code)\b",
    "lost output": r"\b(?:there (?:is|was) no|without (?:any )?) ?(?:result|output)|\bdid(?:n't| "
    r"not) "
    r"(?:show|print|return|display|include|give|run)\b|\bonly (?:\w+ )?(?:of the|part of)\b"
    r"|\balthough (?:i|it|the)\b|\bin the wrong order\b",
    "error": r"\b(?:an|some) (?:error|mistake|bug)\b(?! (?:bound|term|that))|\breported \w+\b",
    "strange": r"\b(?:strange|weird|bizarre|suspicious(?:ly)?|suspect|surprising(?:ly)?|implausible"
    r"|hard to believe|doubt(?:ful)?)\b|\bunexpected\b(?! but)|(?:^|[.!?:,] )odd\b(?! (?:and|or))"
    r"|\b(?:that's|is|seems|looks) (?:very |quite |rather )?odd[:,.!]",
    "looks wrong": rf"\b{_RESULT}(?: of [^.,;:]{{1,40}})? (?:is|are|was|looks?|seems?|appears?"
    r"|must be)(?: to be)? (?:too \w+|off\b|wrong|incorrect|inconsistent|impossible|truncated"
    r"|cut off|missing|incomplete|swapped|mistaken|empty, which|negative, which"
    r"|(?:larger|smaller|more|less|greater|higher|lower) than (?:the|any|what)\b)",
    "not right": r"\b(?:doesn't|does not|don't|do not|didn't|did not) (?:look|seem|make sense"
    r"|add up"
    r"|match|agree|trust|expect|contain)\b|\bmakes no sense\b|\bdisagrees? with\b|\bviolates?\b",
    "cannot be": r"\b(?:it|this|that|which|\w+ result|output|value|number|count|digit|area"
    r"|probability"
    r"|determinant|answer)s?(?: of [^.,]{1,30})? (?:can't|cannot|should not|shouldn't|couldn't|can "
    r"never) be\b|\b(?:is|are) (?:not possible|impossible)(?: for| given|[.!,]|$)",
    "not correct": r"\b(?:is not|isn't|not) (?:correct|right|convinced|(?:quite )?what (?:i|the"
    r"|we)\b)"
    r"|\bare we sure\b|\bis (?:this|that|it) (?:correct|right|really)\b|^\W*not what\b",
    "mistake": r"\bsomething (?:is|must be|seems|went) (?:off|wrong)\b|\b(?:be|seems to be|is"
    r"|suspect)"
    r" an? (?:mistake|bug|error) (?:in|somewhere)|\bmust (?:be mistaken|have (?:returned|missed))"
    r"|\ba bug\b",
    "contradiction": r"\b(?:contradicts?|inconsistent with|off by one|conflicts? with)\b",
    "nothing": r"\bnothing (?:was|is) printed|\bprinted nothing\b|\boutput is empty\b|\bno output\?"
    r"|\b(?:seems?|appears?) to (?:be (?:cut|missing)|end|stop)\b|\bonly (?:see|shows?|got)\b"
    r"|\b(?:was|got|is) lost\b|\bmissing (?:its|the|some|several|a (?:line|factor|value))\b"
    r"|\b(?:is|are) missing\b",
    "expected": r"\bi (?:had )?expected\b|\bdid(?:n't| not) expect\b|\bthe expected value must\b"
    r"|\bi remember\b|\bin my memory\b|\bmy estimate\b",
    "other value": r"\bby hand,? i (?:get|got)\b|\bget a different\b|\b(?:while|yet|but|whereas) "
    r"(?:the )?(?:program|tool|interpreter|output)\b|\b(?:should|must) (?:be|have been|equal"
    r"|divide) "
    r"[^.]{0,40}\b(?:not|but|yet|instead)\b|\b(?:says|is|has|gives) [\w.]+[^.?!]{0,30}, (?:not "
    r"[\d.]+|but (?:by|i|we need)|and our)\b",
    "repetition": r"\b(?:same|previous|first|old) (?:output|result|program|value)(?: as before|, "
    r"not"
    r"| again)|\b(?:repeats|returned|shows) the (?:previous|old|last|same)\b|\bstale\b",
    "wait": r"^\W*(?:wait|hold on)\b[\W]|^\W*hmm+\b(?=.*(?:\bnot\b|n't|\bno\b|\?))",
    "check": r"\b(?:double[- ]?check|cross[- ]?check|sanity[- ]check|(?:let me|i'll|i will|i'd "
    r"better"
    r"|i need to|i should|better|to) (?:re-?check|recount|re-?compute|re-?calculate|re-?do|re-?run"
    r"|re-?evaluate|validate|verify|confirm)(?! (?:the )?(?:condition|remaining|nothing))"
    r"|re-?running|run(?:ning)? (?:it|this|the same code|the code) (?:once more|again)"
    r"|(?:verify|check|confirm|test|validate) (?:this|that|it|the (?:result|value|output|number"
    r"|answer)|with|by hand|whether)|checking by hand|verifying:|to verify,|to make sure"
    r"|to be (?:sure|safe)|independent method|in a different way|with another (?:approach|method)"
    r"|plausible|before (?:i )?trust(?:ing)?|intermediate (?:steps|values))\b",
}
"""The rules: expressions by name. They ignore the case of letters."""

_RULES = [re.compile(rule, re.IGNORECASE | re.DOTALL) for rule in RULES.values()]
_PROGRAM = re.compile(
    rf"{re.escape(CODE_OPEN)}.*?(?:{re.escape(CODE_CLOSE)}|$)"
    rf"|{re.escape(CALL_OPEN)}.*?(?:{re.escape(CALL_CLOSE)}|$)",
    re.DOTALL,
)


def noticed(turn: str) -> bool:
    """Whether a turn doubts or checks the result before it, by the rules of this module.

    Args:
        turn: The text of the turn. Programs in it are not read.

    Example:
        >>> noticed("That can't be right. Let me run it again.")
        True
        >>> noticed("So the answer is 42.")
        False
    """
    prose = _PROGRAM.sub(" ", turn).replace("\u2019", "'")
    return any(rule.search(prose) for rule in _RULES)


def detection_figures(cells: Cells) -> Iterator[CausalFigure]:
    """The share of continuations that notice a silent fault, for each silent kind.

    Args:
        cells: The continuations by prefix and arm, with the arm `"control"`.
    """
    for kind in arms_of(cells):
        if KINDS[kind].sort != "silent":
            continue
        chosen = eligible(cells, kind)
        yield arm_share(
            f"detection/{kind}",
            chosen,
            kind,
            notices,
            "Share of continuations whose first turn doubts or checks the false result, or whose "
            "next call repeats the call.",
        )
        yield arm_difference(
            f"detection/{kind}/net",
            chosen,
            (kind, CONTROL),
            notices,
            "The same share, minus the share among continuations from the true result.",
        )


def notices(one: Continuation) -> float:
    """1 if a continuation doubts or checks the result at the fork, or repeats its call."""
    return one.repeats or noticed(one.turn)
