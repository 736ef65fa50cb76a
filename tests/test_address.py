from __future__ import annotations

import html
import json
from urllib.parse import quote

import pytest

from retool_env.address import check_key, check_no_secrets, check_url, redact


@pytest.mark.parametrize(
    "url", ["", "node7:8000", "ftp://node7", "http://", "http://a:b", "http://a:0", "http://a?b=c"]
)
def test_what_names_no_server_is_refused(url):
    with pytest.raises(ValueError, match="is no URL of a thing; http://right would be"):
        check_url(url, "a thing", "http://right")


@pytest.mark.parametrize(
    "url", ["http://node7:8000", "https://api.example.com/v1", "http://[::1]:8"]
)
def test_what_names_a_server_passes(url):
    check_url(url, "a thing", "http://right")


@pytest.mark.parametrize("key", ["sk-1\n", " sk-1", "sk-1\r\nX: y", "sk-\u00fc1"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key):
    with pytest.raises(ValueError, match="my_key holds") as caught:
        check_key(key, "my_key")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("key", [None, "", "sk-1", "a b"])
def test_other_keys_pass(key):
    check_key(key, "my_key")


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@node7:8000",
        "https://hunter2@api.example.com/v1",
        "http://user:hun@ter2@node7",
        "http://user:pa/hunter2@node7",
        "ftp://user:hunter2@node7",
        "user:hunter2@node7:8000",
        "http://node7/?api_key=hunter2",
        "http://node7#hunter2",
    ],
)
def test_a_url_with_a_password_is_refused_and_not_shown(url):
    with pytest.raises(ValueError, match="a thing") as caught:
        check_url(url, "a thing", "http://right")
    assert "hunter2" not in str(caught.value) and "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "told",
    [
        "Incorrect API key provided: {}.",
        "Bearer {}",
        "{}{}",
        '{{"key": "{}"}}',
        "x" * 290 + "{}",
    ],
)
@pytest.mark.parametrize("key", ["sk-12345678", "a/b+c=d&e", 'q"uo\\te', "hunter2"])
def test_a_key_that_a_server_repeats_is_redacted(told, key):
    for form in (key, json.dumps(key)[1:-1], quote(key, safe=""), html.escape(key)):
        shown = redact(told.format(form, form), None, "", key, most=300)
        assert key not in shown and form not in shown and form[:6] not in shown
        assert len(shown) <= 300


def test_a_key_that_was_checked_is_known_unless_it_could_be_a_word():
    check_key("a-key-of-some-length", "my_key")
    check_key("wrong", "my_key")
    assert redact("a-key-of-some-length is wrong") == "[redacted] is wrong"
    assert redact("see http://me:hunter2@host/x") == "see http://[redacted]@host/x"


def test_the_beginning_of_a_long_key_is_redacted_as_well():
    key = "sk-proj-" + "0123456789" * 4
    assert redact(f"bad key {key[:20]}...", key) == "bad key [redacted]"
    assert redact("bad key sk-proj-ABC", key) == "bad key sk-proj-ABC"


@pytest.mark.parametrize(
    "settings",
    [
        {"sandbox": {"name": "http://h:1", "token": "hunter2"}},
        {"rewriter": {"api_key": "hunter2"}},
        {"trl": {"hub_token": "hunter2"}},
        {"engine": "http://a:1,http://me:hunter2@b:1"},
        {"a": [{"password": "hunter2"}]},
    ],
)
def test_settings_that_hold_a_secret_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))) as caught:
        check_no_secrets(settings)
    assert "hunter2" not in str(caught.value)


def test_other_settings_pass():
    check_no_secrets(
        {
            "token_env": "X",
            "max_tokens": 3,
            "eos_token": "</s>",
            "prompt": "a //b @c",
            "token": None,
        }
    )
