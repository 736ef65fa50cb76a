"""The registry of policies: names, entries of one's own, and wrong settings."""

import pytest

from retool_env.errors import SettingsError
from retool_env.rollout.named import POLICIES, Model, make_policy


def test_a_policy_that_was_entered_is_made_by_its_name(monkeypatch):
    monkeypatch.setitem(POLICIES, "own", lambda model, **settings: (model.name, settings))
    assert make_policy("own", Model("m"), temperature=0.5) == ("m", {"temperature": 0.5})


def test_a_name_that_there_is_not_is_told_those_that_there_are():
    with pytest.raises(
        SettingsError, match="unknown policy 'vlm': choose one of transformers, vllm, "
    ):
        make_policy("vlm", Model("m"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 4}, "unexpected keyword argument 'rows'"),
        ({"top_p": 2}, "top_p must be above 0"),
        ({"model": "n"}, "multiple values for argument 'model'"),
    ],
)
def test_a_wrong_argument_is_a_wrong_setting(settings, words):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    with pytest.raises(SettingsError, match=words):
        make_policy("openai", Model("m"), urls="http://h/v1", **settings)


def test_a_mistake_in_a_policy_is_not_a_wrong_setting(monkeypatch):
    def broken(model):
        raise KeyError("a bug")

    monkeypatch.setitem(POLICIES, "broken", broken)
    with pytest.raises(KeyError, match="a bug"):
        make_policy("broken", Model("m"))
