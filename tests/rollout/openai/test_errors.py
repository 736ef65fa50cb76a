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
    room_in_context,
    too_long,
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


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4097 tokens. However, your messages resulted in "
        "4294 tokens. Please reduce the length of the messages.",
        "This model's maximum context length is 4096 tokens. However, you requested 5120 tokens.",
        "prompt is too long: 208310 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000, decrease "
        "input length or `max_tokens` and try again",
        "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).",
        "Please reduce the length of the messages or completion.",
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).",
        "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
        "Requested token count exceeds the model's maximum context length of 202752 tokens.",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum "
        "context length",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5012 "
        "`inputs` tokens and 4096 `max_new_tokens`",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "the request exceeds the available context size, try increasing it",
        "This model's maximum prompt length is 500000 but the request contains 907154 tokens.",
        "x" * 400 + " context_length_exceeded",
    ],
)
def test_a_full_context_is_recognised_in_the_words_of_every_api(message):
    assert context_is_full(refusal(400, message))
    assert not context_is_full(refusal(429, message))  # the tokens of a minute
    assert context_is_full(refusal(422, "too much", code="context_length_exceeded"))
    listed = refusal(400, "")
    listed.body = [{"error": {"message": message}}]
    assert context_is_full(listed)


@pytest.mark.parametrize(
    "message",
    [
        "bad words",
        "max_tokens must be at most 8192",
        "Invalid value for 'max_tokens': exceeds the maximum",
        "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 8000, "
        "please reduce your message size and try again",
        "string too long",
    ],
)
def test_other_refusals_are_no_full_context(message):
    assert not context_is_full(refusal(400, message))


def test_a_first_prompt_that_is_too_long_is_named():
    assert "the prompt of aime/3 is too long" in str(too_long(URL, "aime/3", "words"))


def test_a_refused_sampling_setting_names_the_option_that_leaves_it_out():
    error = refusal(400, "Unsupported parameter: 'temperature'", param="temperature")
    assert "(--no-temperature leaves temperature out)" in str(explained(error, URL, REQUEST, True))
    words = "`temperature` and `top_p` cannot both be specified"
    raised = explained(refusal(400, words), URL, {"model": "m", "top_p": 1.0}, True)
    assert "--no-top-p leaves top_p out" in str(raised)


def test_a_list_of_errors_is_read():
    listed = refusal(400, "")
    listed.body = [{"error": {"message": 'Unknown name "seed": Cannot find field.'}}]
    assert api_message(listed) == 'Unknown name "seed": Cannot find field.'
    assert refused_field(listed, REQUEST) == "seed"


def test_long_texts_are_cut():
    assert len(api_message(refusal(400, "x" * 9999))) <= ERROR_CHARACTERS + 10


@pytest.mark.parametrize(
    ("message", "room"),
    [
        (
            "This model's maximum context length is 4097 tokens. However, you requested 4927 "
            "tokens (3927 in the messages, 1000 in the completion). Please reduce the length.",
            170,
        ),
        (
            "This model's maximum context length is 4097 tokens, however you requested 5000 tokens "
            "(4000 in your prompt; 1000 for the completion).",
            97,
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 100. This model's maximum "
            "context length is 64 tokens and your request has 60 input tokens (100 > 64 - 60).",
            4,
        ),
        (
            "maximum context length is 10 tokens. you requested 12 tokens (10 in the prompt, 2)",
            None,
        ),
        ("This model's maximum context length is 4096 tokens. You requested 5120 tokens.", None),
        ("prompt is too long: 208310 tokens > 200000 maximum", None),
        ("try again", None),
    ],
)
def test_the_room_for_a_turn_is_read_where_the_words_name_it(message, room):
    assert room_in_context(refusal(400, message)) == room
