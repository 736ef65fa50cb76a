"""Errors of an API: the reaction to each, and no key in any text."""

import pytest

from retool_env.errors import (
    APIForbidden,
    APIUnreachable,
    PolicyUnavailable,
    RequestRefused,
    SettingsError,
)

openai = pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
httpx = pytest.importorskip("httpx")

from retool_env.rollout.openai.errors import (  # noqa: E402
    ERROR_CHARACTERS,
    api_message,
    context_is_full,
    explained,
    refused_field,
)

URL = "http://h/v1"
REQUEST = {"model": "m", "seed": 1, "temperature": 0.5}


def refusal(status: int, message: str, **more: str):
    response = httpx.Response(status, request=httpx.Request("POST", URL))
    body = {"message": message, **more}
    return openai.APIStatusError(message, response=response, body=body)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRefused),
        (401, APIForbidden),
        (403, APIForbidden),
        (404, SettingsError),
        (408, PolicyUnavailable),
        (409, PolicyUnavailable),
        (422, RequestRefused),
        (429, PolicyUnavailable),
        (503, PolicyUnavailable),
    ],
)
def test_the_reaction_to_a_status(status, error):
    raised = explained(refusal(status, "words of sk-1"), URL, REQUEST, True, "sk-1")
    assert type(raised) is error
    assert URL in str(raised) and "words of" in str(raised) and "sk-1" not in str(raised)


def test_a_quota_that_is_used_up_is_not_tried_again():
    error = refusal(429, "no credit", code="insufficient_quota")
    assert isinstance(explained(error, URL, REQUEST, True), APIForbidden)


@pytest.mark.parametrize(("answered", "kind"), [(True, PolicyUnavailable), (False, APIUnreachable)])
def test_an_api_that_never_answered_is_taken_for_a_wrong_address(answered, kind):
    error = openai.APIConnectionError(request=httpx.Request("POST", URL))
    error.__cause__ = OSError("refused for sk-1")
    raised = explained(error, URL, REQUEST, answered, "sk-1")
    assert type(raised) is kind and "refused for" in str(raised) and "sk-1" not in str(raised)


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (refusal(400, "'seed' is not supported"), "seed"),
        (refusal(422, "extra inputs", param="seed"), "seed"),
        (refusal(400, "unknown: 'stop'"), None),  # which was not sent
        (refusal(400, "'temperature' is not supported"), None),  # which changes the turn
        (refusal(400, "seed is too large"), None),
        (refusal(500, "'seed' is not supported"), None),
    ],
)
def test_only_a_field_that_changes_no_meaning_is_left_out(error, field):
    assert refused_field(error, REQUEST) == field


def test_a_full_context_is_recognised_and_long_texts_are_cut():
    assert context_is_full(refusal(400, "This model's maximum context length is 9"))
    assert not context_is_full(refusal(400, "bad words"))
    assert len(api_message(refusal(400, "x" * 9999))) <= ERROR_CHARACTERS + 10
