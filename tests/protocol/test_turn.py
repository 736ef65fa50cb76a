"""The interface of a protocol: all registered protocols have its methods and its properties."""

import inspect

import pytest

from retool_env.protocol import PROTOCOLS, TurnKind, TurnProtocol
from retool_env.protocol.program import read_program


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("method", ["default_prompt", "prompt", "parse", "result", "void"])
def test_a_protocol_has_the_parameters_of_the_interface(name, method):
    made = PROTOCOLS[name](True, False, False)
    expected = inspect.signature(getattr(TurnProtocol, method)).parameters
    actual = inspect.signature(getattr(type(made), method)).parameters
    assert [(p.name, p.default) for p in actual.values()] == [
        (p.name, p.default) for p in expected.values()
    ]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("interpreter", [True, False])
def test_a_turn_without_a_tag_is_void_and_all_of_its_text(name, interpreter):
    made = PROTOCOLS[name](interpreter, False, False)
    assert isinstance(made.stop, tuple)
    turn = made.parse("so it goes", read=read_program)
    assert (turn.kind, turn.start, turn.end) == (TurnKind.VOID, 10, 10)
    assert turn.content == turn.error == "" and turn.form is None
    text, ids = made.void()
    assert "Go on." in text and ids is None
