from __future__ import annotations

import pytest

from retool_env.address import check_key, check_url


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
