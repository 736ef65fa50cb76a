"""Further fields of requests: what they may be, and that they show no key."""

import pytest

from retool_env.rollout.openai.extra import check_extra


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"model": "x"}, "model can't be an extra field"),
        ({"stream": True}, "stream can't be an extra field"),
        ({"temperature": 1}, "temperature can't be an extra field"),
        ({"api_key": "x"}, "api_key would be shown"),
        ({"a": {"access_token": "x"}}, r"a\.access_token would be shown"),
        ({"a": ["http://user:word@host"]}, "a contains a key, or a URL with a key"),
        ({"a": "sk-the-key-itself"}, "holds a key"),
        ({"a": float("nan")}, "must be JSON"),
        ({"a": {1}}, "must be JSON"),
        ({"max_completion_tokens": 0}, "must be a positive whole number, not 0"),
        ({"max_completion_tokens": "9"}, "must be a positive whole number"),
    ],
)
def test_wrong_extra_fields_are_refused_and_show_no_key(extra, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_extra(extra, "sk-the-key-itself")
    assert "sk-the-key" not in str(caught.value) and "word@" not in str(caught.value)


def test_right_extra_fields_are_copied():
    extra = {"reasoning_effort": "high", "seed": None, "max_completion_tokens": 5}
    assert check_extra(extra) == extra and check_extra(extra) is not extra
