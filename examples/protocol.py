"""A new protocol: programs in fences, answers in boxes. Run: python examples/protocol.py."""

from dataclasses import dataclass
from typing import override

from retool_env import Rules, Transcript, make_sandbox
from retool_env.grading import extract_boxed
from retool_env.problems import Problem
from retool_env.protocol import PROTOCOLS, Turn, TurnKind, TurnProtocol
from retool_env.protocol.program import read_program
from retool_env.rollout import RolloutEngine, TextGeneration, TextPolicy
from retool_env.tokens import decode, encode_prompt, encode_result

OPEN, CLOSE = "```python\n", "\n```\n"


@dataclass(frozen=True)
class Fences(TurnProtocol):
    """The protocol. `TurnProtocol` describes each method and its arguments."""

    interpreter: bool = True
    session: bool = False
    display: bool = False

    @property
    def stop(self):
        """The strings that end a turn."""
        return (CLOSE,) if self.interpreter else ()

    def default_prompt(self):
        """The template of the prompt; `{query}` stands for the problem's text."""
        fence = "You may run programs in ```python fences. " if self.interpreter else ""
        return fence + "Answer in \\boxed{{}}.\n\n{query}\n"

    def prompt(self, message, tokenizer):
        """The first span: its text and, with a tokenizer, its token ids."""
        if tokenizer is None:
            return message, None
        ids = encode_prompt(tokenizer, message)
        return decode(tokenizer, ids), ids

    @override
    def parse(self, text, ended=True, read=read_program):
        """Parse a turn: the first closed fence is a call; without a fence the last box answers."""
        start, end = text.find(OPEN), text.find(CLOSE)
        if self.interpreter and 0 <= start < end:
            program = read(text[start + len(OPEN) : end])
            end += len(CLOSE)
            return Turn(TurnKind.CODE, program.text, start, end, form=program.form)
        answer = extract_boxed(text)
        if answer is None or not ended:
            return Turn(TurnKind.VOID, "", len(text), len(text))
        return Turn(TurnKind.ANSWER, answer, text.rfind("\\boxed"), len(text))

    @override
    def result(self, output, tokenizer=None, turn_ids=(), notice=""):
        """The span that shows a program's result."""
        notice = f"{notice}\n" if notice else ""
        return self._span(f"```output\n{output}```\n{notice}", tokenizer)

    def void(self, tokenizer=None, turn_ids=()):
        """The span after a turn with neither a program nor an answer."""
        return self._span("\n[Neither a program nor an answer. Go on.]\n", tokenizer)

    def _span(self, text, tokenizer):
        return text, None if tokenizer is None else encode_result(tokenizer, text)


# After this line rules can name the protocol, and its transcripts can be read.
PROTOCOLS["fences"] = Fences


class Writer(TextPolicy):
    """Writes one program, then an answer."""

    @override
    async def write(self, transcript, stop, seed):
        """Write the next turn."""
        if transcript.response:
            return TextGeneration("It is \\boxed{42}.", "eos")
        return TextGeneration(f"I compute it.\n{OPEN}print(6 * 7){CLOSE}", "tag")


if __name__ == "__main__":
    problem = Problem(id="one", question="What is 6 times 7?", answer="42")
    with make_sandbox() as sandbox:
        [[transcript]] = RolloutEngine(Writer(), Rules(protocol="fences"), sandbox).run([problem])
    read = Transcript.from_json(transcript.to_json())
    print(read.text)
    print([turn.kind.value for turn in read.turns], [call.ok for call in read.calls], read.reward)
