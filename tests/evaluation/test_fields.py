"""What a reader says of a file without the fields that it needs."""

import pytest

from retool_env.evaluation.fields import checked


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "it holds None, and not an object"),
        ([], r"it holds \[\], and not an object"),
        ("text", "it holds 'text', and not an object"),
        ({}, "the field schema is missing"),
        ({"schema": "1"}, "schema must be a whole number from 1 to 2, not '1'"),
        ({"schema": 1.0}, "whole number from 1 to 2, not 1.0"),
        ({"schema": True}, "whole number from 1 to 2, not True"),
        ({"schema": 0}, "whole number from 1 to 2, not 0"),
        ({"schema": None}, "whole number from 1 to 2, not None"),
        ({"schema": 3}, "schema 3 is unknown: a newer retool-env wrote it"),
        ({"schema": 1}, "the fields name, k are missing"),
        ({"schema": 1, "name": "m"}, "the field k is missing"),
    ],
)
def test_a_file_that_cannot_be_read_is_described(values, words):
    with pytest.raises(ValueError, match=words):
        checked(values, 2, ("name", "k"))


def test_a_readable_file_is_returned_as_it_is():
    values = {"schema": 2, "name": "m", "k": 1, "more": None}
    assert checked(values, 2, ("name", "k")) is values
