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
_UNLESS = r"(?! (?:for|if|when|until|unless|since|because|by definition)\b)"
"""A stated reason or condition: then an empty output is understood, and not doubted."""
_SOURCE = r"(?:tool|program|interpreter|code|script|snippet|output|result|execution|printout)"
_OTHER_WAY = r"(?:different|another|independent|second) (?:algorithm|method|approach|way|opinion)"
RULES: dict[str, tuple[str, ...]] = {
    "doubt": (
        r"\b(?:discrepanc\w+|s[ck]eptical|unsure|questionable|misleading|untrustworthy)\b",
        r"\b(?:puzzl\w+|confus(?:ed|ing)|unlikely|unusual|unreasonable|unreliable)\b",
        r"\bfishy\b",
        r"\bnot (?:so |entirely |quite |completely )?(?:sure|certain|confident)\b",
        r"\b(?:not|n't|never|rather not) (?:rely|believe|trust)\b",
        r"^\W*huh\b",
    ),
    "too far": (
        r"\b(?:that|this|it|result|value|output|number|count|total|sum|probability) (?:just"
        r" )?(?:(?:seems|looks|feels|sounds) (?:far |much |way |rather |a bit |too |very )*"
        r"|is (?:far |much |way |rather |a bit |too |very )+)(?:low|high|small|large|big|long"
        r"|short)\b",
        r"\b(?:exceeds?|violates?|lacks?)\b",
        r"\b(?:is|are) never (?:negative|zero)",
        r"\b(?:yet|but) (?:we|i|it|this|the (?:result|output|program)) (?:got|get|gives?|gave"
        r"|shows?|showed|printed|see|says?)\b",
    ),
    "again": (
        r"\b(?:try|compute|calculate|run|evaluate|execute|do|count|derive|check|look) (?:it"
        r"|this|that|them|(?:the )?[\w ]{0,20})? ?(?:once more|again|by hand|manually|another"
        r" way|(?:in )?a different way|differently|more carefully|with exact \w+)\b",
        r"\bmore (?:digits|carefully)",
        r"\bexplicitly\b",
        r"\banother way\b",
        r"\btry again\b",
        r"\bearlier (?:script|program|run|call|code)\b",
    ),
    "lost output": (
        rf"\b(?:there (?:is|was) no|without (?:any )?) ?(?:result|output)\b{_UNLESS}",
        r"\bdid(?:n't| not) (?:show|print|return|display|include|give|run)\b",
        r"\bonly (?:\w+ )?(?:of the|part of)\b",
        r"\balthough (?:i|it|the)\b",
        r"\bin the wrong order\b",
        r"\b(?:been|are|were|is|got) (?:interchanged|swapped|mixed up|reversed)\b",
    ),
    "error": (
        r"\b(?:an|some) (?:error|mistake|bug)\b(?! (?:bound|term|that))",
        r"\breported \w+\b",
    ),
    "strange": (
        r"\b(?:strange|weird|bizarre|suspicious(?:ly)?|suspect|surprising(?:ly)?)\b",
        r"\b(?:implausible|hard to believe|doubt(?:ful)?)\b",
        r"\bunexpected\b(?! but)",
        r"(?:^|[.!?:,] )odd\b(?! (?:and|or))",
        r"\b(?:that's|is|seems|looks) (?:very |quite |rather )?odd[:!]",
        r"\b(?:seems|looks) (?:very |quite |rather )?odd[,.]",
    ),
    "looks wrong": (
        rf"\b{_RESULT}(?: of [^.,;:]{{1,40}})? (?:is|are|was|looks?|seems?|appears?|must"
        rf" be)(?: to be)? (?:too \w+|off\b|wrong|incorrect|inconsistent|impossible|truncated"
        rf"|cut off|missing|incomplete|swapped|mistaken|empty, which|negative, which|"
        rf"(?:larger|smaller|more|less|greater|higher|lower) than (?:the|any|what)\b)",
    ),
    "not right": (
        r"\b(?:doesn't|does not|don't|do not|didn't|did not) (?:look|seem|make sense|add up"
        r"|match|agree|trust|expect|contain)\b",
        r"\bmakes no sense\b",
        r"\bdisagrees? with\b",
        r"\b(?:does not|doesn't|do not|don't|cannot|can't) fit\b",
        r"\bviolates?\b",
    ),
    "cannot be": (
        r"\b(?:it|this|that|which|\w+ result|output|value|number|count|digit|area|probability"
        r"|determinant|answer)s?(?: of [^.,]{1,30})? (?:can't|cannot|should not|shouldn't"
        r"|couldn't|can never) be\b",
        r"\b(?:is|are) (?:not possible|impossible)(?: for| given|[.!,]|$)",
    ),
    "not correct": (
        r"\b(?:is not|isn't|not) (?:correct|right|convinced|(?:quite )?what (?:i|the|we)\b)",
        r"\bare we sure\b",
        r"\bis (?:this|that|it) (?:correct|right|really)\b",
        r"^\W*not what\b",
    ),
    "mistake": (
        r"\bsomething (?:is|must be|seems|went) (?:off|wrong)\b",
        r"\b(?:be|seems to be|is|suspect) an? (?:mistake|bug|error) (?:in|somewhere)",
        r"\bmust (?:be mistaken|have (?:returned|missed))",
        r"\ba bug\b",
    ),
    "contradiction": (r"\b(?:contradicts?|inconsistent with|off by one|conflicts? with)\b",),
    "nothing": (
        rf"\bnothing (?:was|is) printed\b{_UNLESS}",
        rf"\bprinted nothing\b{_UNLESS}",
        r"\boutput (?:is )?empty\b",
        r"\bno output\?",
        r"\b(?:seems?|appears?) to (?:be (?:cut|missing)|end|stop)\b",
        r"\bonly (?:see|shows?|got)\b",
        r"\b(?:was|got|is) lost\b",
        r"\bmissing (?:its|the|some|several|a (?:line|factor|value))\b",
        r"\b(?:is|are) missing\b",
    ),
    "expected": (
        r"\bi (?:had )?expected\b",
        r"\bdid(?:n't| not) expect\b",
        r"\bthe expected value must\b",
        r"\bi (?:remember|recall)\b",
        r"\bin my memory\b",
    ),
    "other value": (
        r"\bby hand,? i (?:get|got)\b",
        r"\bget a different\b",
        r"\b(?:while|yet|but|whereas) (?:the )?(?:program|tool|interpreter|output)\b",
        r"\b(?:should|must) (?:be|have been|equal|divide) [^.]{0,40}\b(?:not|but|yet"
        r"|instead)\b",
        r"\b(?:says|is|has|gives) [\w.]+[^.?!]{0,30}, (?:not [\d.]+|but (?:by|i|we need)|and"
        r" our)\b",
    ),
    "repetition": (
        r"\b(?:same|previous|first|old) (?:output|result|program|value)(?: as before|, not|"
        r" again)",
        r"\b(?:repeats|returned|shows) the (?:previous|old|last|same)\b",
        r"\bstale\b",
    ),
    "wait": (
        r"^\W*(?:wait|hold on)\b[\W]",
        r"^\W*hmm+\b(?=.*(?:\bnot\b|n't|\bno\b|\?))",
    ),
    "check": (
        r"\b(?:double[- ]?check|cross[- ]?check|sanity[- ]check|re-?running)\b",
        r"\b(?:checking by hand|verifying:|to verify,|to make sure|to be (?:sure|safe))\b",
        r"\b(?:independent method|in a different way|plausible)\b",
        r"\b(?:before (?:i )?trust(?:ing)?|intermediate (?:steps|values))\b",
        r"\b(?:let me|i'll|i will|i'd better|i need to|i should|better|to) (?:re-?check"
        r"|recount|re-?compute|re-?calculate|re-?do|re-?run|re-?evaluate|validate|verify"
        r"|confirm)(?! (?:the )?(?:condition|remaining|nothing))\b",
        r"\brun(?:ning)? (?:it|this|the same code|the code) (?:once more|again)\b",
        r"\b(?:verify|check|confirm|test|validate) (?:this|it|the (?:result|value|output|number"
        r"|answer)|with|by hand)\b",
        r"\b(?:verify|check|confirm|test|validate) that(?: (?:result|value|output|number|answer"
        r"|by|with|again)\b|[.,:;]|$)",
        rf"\b(?:verify|check|confirm) whether (?:i|we|it|this|(?:the )?{_SOURCE})\b",
        r"\bwith another (?:approach|method)\b",
    ),
    "first word": (
        r"^\W*(?:no[,.!]? (?:that|this|it|wrong)|nope\b|wrong\b|error\b|re-?do\b|re-?try\b"
        r"|again\b|re-?check\b|\?{2,})",
        r"^\?{2,}",
    ),
    "label": (
        r"\b(?:check(?:ing)?|verif(?:y|ying|ication)|test(?:ing)?)(?: (?:by hand|manually"
        r"|first))?:",
    ),
    "blame": (
        r"\b(?:glitch\w*|garbled|malfunction\w*|at fault|corrupt(?:ed)?|bogus)\b",
        r"\b(?:nonsens\w*|absurd|ridiculous)\b",
        rf"\b{_SOURCE}(?:'s)? (?:claims?|claimed|insists?)\b",
        r"\bcontrary to\b",
        rf"\baccording to (?:the |this )?{_SOURCE},? (?:but|yet|however)\b",
        rf"\b(?:whereas|although|though) (?:the |this |its )?{_SOURCE}\b",
        r"\b(?:reports?|says|claims|shows?|prints?|printed|returned|gives?|gave) [\w.]+,"
        r" whereas\b",
        rf"\bas (?:the )?{_SOURCE} claims\b",
        r"\b(?:and|is) not [\w.]+ as (?:printed|shown|reported|stated|the)\b",
    ),
    "surprise": (
        r"\bsurpris(?:es|ed) me\b",
        r"\bstrikes? me\b",
        r"\bstartling\b",
        r"\breally\?",
    ),
    "no such value": (
        r"\b(?:must|should|has to|have to|needs to) be (?:an? )?(?:\w+ )?(?:integers?|whole"
        r"(?: numbers?)?|positive|negative|even|odd|prime|natural)\b(?:[^.?!]|\.\d)*\b(?:is"
        r"|are|was) not\b",
        r"\b(?:probability|count|number|area|length|distance|result|value) (?:of )?-[\d.]+ "
        r"(?:has no|makes no|is not|isn't|cannot|can't)\b",
        r"(?:^|[?.!:;] ?)(?:it |this |that |so )?(?:can't|cant|cannot|can not|could not"
        r"|couldn't) be\b",
        r"\b(?:that's|that is|this is|it's|it is) (?:larger|smaller|greater|less|more|higher"
        r"|lower|bigger) than\b",
        r"\bthis is not possible\b",
        r"\bhas no meaning\b",
    ),
    "false value": (
        r"(?<![=*/+^(-] )(?<![\w.])-?[\d.]*\d (?:is|must be|seems|looks) (?:just |clearly "
        r"|obviously |simply )?(?:wrong|incorrect|false|off|too (?:low|high|small|large"
        r"|big))\b",
        r"\b(?:not|isn't|aren't|n't be|hardly) (?:consistent|compatible|in line|plausible)\b",
    ),
    "part is missing": (
        r"\b(?:ends?|stops?|breaks off) (?:abruptly|too (?:early|soon)|in the middle)\b",
        rf"\b(?:absent|lost|missing|dropped|left out|vanished|disappeared) (?:\w+ )?(?:from"
        rf"|in|of) (?:the|this|that) (?:{_SOURCE}|list|table|factori[sz]ation)\b",
        r"\b(?:list|output|table|it|tool|program) (?:has|shows|contains|lists|prints|printed"
        r"|gave|includes) only\b",
        r"\bonly [\w ]{1,30} (?:are|is|was|were) (?:listed|shown|printed|displayed|returned)\b",
        r"\bpart of the (?:output|result|list) (?:is|has|was|got)\b",
        r"\b(?:notice|see) that the [\w ]{1,40} (?:has|have|contains?) only\b",
    ),
    "nothing came": (
        r"\b(?:no (?:text|output|result|answer|value)|nothing) (?:came back|(?:was|is|were)"
        r" (?:shown|returned|displayed))\b",
        rf"\b(?:gave|returned|showed|shows|produced) (?:me |us )?nothing\b{_UNLESS}",
        r"\b(?:don't|do not|can't|cannot) see (?:the|any) (?:\w+ )?(?:value|output|result)\b",
        r"\b(?:there's|there is) no (?:result|output|value) (?:shown|printed|here)\b",
        r"\badd (?:a )?print\b",
        r"\bprint (?:it|this|that) (?:this time|again)\b",
    ),
    "old output": (
        r"\boutput of the (?:previous|last|first|earlier|old)\b",
        r"\b(?:returned|printed|shows?|gave|displays?|outputs?) the (?:very |exact |exactly"
        r" )*same (?:\w+ )?as (?:\w+ ){0,2}(?:before|previous|last|first|earlier)\b",
    ),
    "another way": (
        rf"\b(?:with|by|using|use|try|via|like|get|want) (?:an? )?{_OTHER_WAY}\b",
        r"\b(?:identical|same) (?:code|program|call|snippet) (?:again|a second time|once"
        r" more)\b",
        r"\bsecond time\b",
        r"\bjust in case\b",
        r"\bto be certain\b",
        r"\b(?:do|compute|calculate|count|evaluate|work out|add up|go through) (?:this|that"
        r"|it|the [\w ]{1,30}) (?:by hand|manually|directly)\b",
        r"\b(?:let me|let's|i'll|i will|to) see (?:whether|if)\b",
        r"\bto see (?:whether|if) (?:they|it|both|the (?:two|results?|values?)) (?:agrees?"
        r"|match(?:es)?)\b",
    ),
    "wish to check": (
        r"\b(?:i'd|i would|i want|we|i|we'd) (?:like to |want to |to |should |must |had"
        r" better |need to )+(?:double[- ]?check|confirm|verify|re-?\w*(?:check|compute"
        r"|calculate|do|run|count))\b",
        r"\b(?:let me|let's|i'll|i will) (?:just |quickly |also )?(?:test|confirm|verify"
        r"|check) (?:this|that|the) (?:\w+ )?(?:claim|value|result|number|output|total|figure"
        r"|answer)\b",
        r"\blet me (?:verify|check)(?: (?:with|by|using|via)\b|[:.])",
    ),
    "terse": (
        r"^\W*(?:\w+ )?(?:nah|nope|ain't|aint)\b",
        r"^\W*(?:\w+,? )?no,? -?\d",
        r"^\W*(?:not|isn't|isnt) -?\d",
        r"^\W*(?:still|again) (?:nothing|no|wrong|empty|blank|the same)\b",
        r"^\W*(?:bad|odd|strange|weird|false|garbage)\b(?: (?:output|result|value|answer)"
        r"|\W*[.!?\n])",
        r"\b(?:aint|ain't|isnt|doesnt|cant be) (?:right|correct|possible|true|fit|match)\b",
    ),
    "redo": (
        r"(?:^|[.!?:;,\n] ?)(?:so |then |now )?(?:re-?(?:compute|check|count|calculate|run|try"
        r"|verify)"
        r"|retry|redo|repeat|double-?check)\b(?! (?:with|for|the (?:same )?(?:steps?|argument)"
        r"|nothing)\b)",
        r"\b(?:i'll|i will|let me|let us|let's|i'm going to|i am going to|we should|i should|must) "
        r"(?:just |better |now )?(?:repeat (?:the|this|that)|retry|redo|recount|recompute"
        r"|recheck)\b",
        r"\bincrease the precision\b",
        r"\bto rule out\b",
    ),
    "blank": (
        r"\b(?:reply|output|result|response|screen|answer|printout) (?:is|was|came back|seems"
        r"|looks) "
        r"(?:blank|empty|truncated|garbled|cut)\b",
        r"\bcut (?:off|in half|short)\b",
        rf"\b{_SOURCE} (?:has |was |got |seems |must have )(?:\w+ )?truncated\b",
        r"\b(?:has|have) (?:vanished|disappeared|gone missing|been lost|been dropped)\b",
        r"\bprint statement\b",
    ),
    "question": (
        rf"\b(?:could|can|might|did|has|was) (?:it|that|this|(?:the |this |that )?{_SOURCE})"
        rf" (?!mean)"
        r"[^.?!,]{0,60}\?",
        r"\d again\?",
        r"\b(?:why|how) (?:is|was|does|did|do|can|could) (?:it|that|this|the (?:output|result|tool"
        r"|program|list))\b[^.!?]*\?",
    ),
    "contrast": (
        r"= ?-?[\d.,/]*\d (?:rather than|instead of|and not|not) -?\d",
        r"\b(?:should|would|must|ought to) (?:be|begin|start|end|have|equal|sum|lie"
        r"|come)\b[^.?!]{0,60}"
        r"\b(?:and|but|while|whereas|yet|though) (?:here |now )?(?:this|these|they|it|the"
        r" (?:output|"
        r"program|tool)|we)\b",
        r"\bwould have (?:expected|thought|guessed)\b",
        r"\bshould not (?:accept|rely|use|believe)\b",
        r"\bbelieve (?:it|the tool|the program|this)\b|\b(?:do not|don't) (?:buy|believe|accept)\b",
        r"\b(?:cannot|can't|could not|couldn't) happen\b|\bout of the question\b",
        rf"\b{_SOURCE}(?: \w+){{0,3}} -?[\w.]+, (?:which|but|yet|although"
        rf"|though)\b[^.?!]*(?:\bnot\b|n't)",
        r"\bone of (?:us|them|the two) is (?:off|wrong|mistaken)\b",
        r"\b(?:after all|contrary|on the contrary)\b[^.?!]*\bnot\b|\bnot\b[^.?!]*\bafter all\b",
        r"\band here (?:they|it|we)\b",
    ),
    "other languages": (
        r"\bkann nicht (?:stimmen|sein|richtig)",
        r"\bstimmt (?:so )?nicht\b",
        r"\b(?:noch ?mal|erneut|nach)(?:ge)?rechne",
        r"\brechne [^.?!]{0,30}\bnach\b",
        r"\bn'est pas (?:possible|correct)",
        r"\br[e\u00e9]sultat est (?:faux|incorrect)",
        r"\bv[e\u00e9]rifions\b",
        r"\bno puede ser\b",
        r"\bresultado (?:es|est\u00e1) (?:incorrecto|mal)",
        r"\bverifiquemos\b",
        r"\u4e0d\u5bf9",
        r"\u7b49\u7b49",
        r"\u91cd\u65b0(?:\u8ba1\u7b97|\u68c0\u67e5|\u8fd0\u884c)",
        r"\u9a8c\u8bc1\u4e00\u4e0b",
        r"\u6709\u8bef",
    ),
}
"""The rules: expressions by name. They ignore the case of letters, and read one turn each."""

_ANY = "|".join(expression for rule in RULES.values() for expression in rule)
_RULES = re.compile(_ANY, re.IGNORECASE | re.DOTALL)
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
    return _RULES.search(prose) is not None


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
