"""Addresses and keys: wrong values are refused, and no text shows a secret."""

from __future__ import annotations

import html
import json
import time
from urllib.parse import quote

import pytest

from retool_env.servers.address import (
    base_url,
    check_key,
    check_no_secrets,
    check_url,
    redact,
    split_urls,
    without_secrets,
)


@pytest.mark.parametrize(
    "url", ["", "node7:8000", "ftp://node7", "http://", "http://a:b", "http://a:0", "http://a?b=c"]
)
def test_a_url_that_is_not_a_server_is_refused(url):
    with pytest.raises(ValueError, match="is not a URL of a thing; give one such as http://right"):
        check_url(url, "a thing", "http://right")


@pytest.mark.parametrize(
    "url", ["http://node7:8000", "https://api.example.com/v1", "http://[::1]:8"]
)
def test_the_url_of_a_server_passes(url):
    check_url(url, "a thing", "http://right")


@pytest.mark.parametrize("url", ["http://a:1", " http://a:1/\n", "http://a:1/v1", "http://a:1/v1/"])
def test_a_url_may_end_with_the_path_of_the_api(url):
    assert base_url(url, "/v1", "a thing", "http://right") == "http://a:1"
    assert base_url("http://a/v1", "/run", "a thing", "http://right") == "http://a/v1"
    with pytest.raises(ValueError, match="is not a URL of a thing; give one such as http://right"):
        base_url("/v1", "/v1", "a thing", "http://right")


@pytest.mark.parametrize("key", ["sk-1\n", " sk-1", "sk-1\r\nX: y", "sk-\u00fc1"])
def test_a_key_that_does_not_fit_a_header_is_refused_and_not_shown(key):
    with pytest.raises(ValueError, match="my_key contains") as caught:
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
        "http://user:hunter2%40node7:8000",
        "http://user:12/hunter2@node7",
        "http:\\\\user:hunter2@node7",
        "http://node7?x=1&sig=hunter2",
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


def test_a_checked_key_is_redacted_unless_it_could_be_a_word():
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
        {"a": {"secret_access_key": "hunter2", "credentials": "hunter2"}},
        {"a": "http://me:pa/hunter2@b:1"},
        {"a": "https://b/x?n=1&access_token=hunter2"},
        {"a": "https://b/x?key=hunter2"},
    ],
)
def test_settings_that_hold_a_secret_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))) as caught:
        check_no_secrets(settings)
    assert "hunter2" not in str(caught.value)


def test_a_list_of_urls_is_not_split_inside_a_password():
    with pytest.raises(ValueError, match="a user name or a password") as caught:
        split_urls("http://a:1, http://me:hunter2,x@b:1", "a thing", "http://right")
    assert "hunter2" not in str(caught.value)
    assert split_urls("http://a:1, http://b:2", "a thing", "x") == ["http://a:1", "http://b:2"]


def test_settings_are_shown_without_secrets():
    given = {"token": "hunter2", "a": {"api_key": "hunter2", "b": "http://me:hunter2@h"}, "n": 1}
    shown = without_secrets(given)
    assert "hunter2" not in str(shown) and shown["n"] == 1
    assert shown["a"] == {"api_key": "[redacted]", "b": "http://[redacted]@h"}


@pytest.mark.parametrize(
    "text", ["http://h:80/x@y", "hf://datasets/a@main/x.csv", "https://h/x?page=2&tokens=3"]
)
def test_other_texts_stay(text):
    check_no_secrets({"a": text})
    assert redact(text) == text


@pytest.mark.parametrize("text", ["//a:b" * 13_000, "//a:" * 20_000, "?a=b" * 20_000, "/" * 60_000])
def test_no_text_takes_long(text):
    started = time.process_time()
    redact(text, "hunter2")
    assert time.process_time() - started < 5


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
