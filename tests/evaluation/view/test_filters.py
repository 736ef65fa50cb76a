"""The filter query selects rows as the shared table says, and names the place of each fault."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.evaluation.view.filters import NAMES, Filter, FilterError, flips

TABLE = json.loads(Path(__file__).with_name("filters.json").read_text("utf-8"))
"""The cases, which the page's own implementation has to pass as well."""

KEPT = [case for case in TABLE["cases"] if "addresses" in case]
FAULTS = [case for case in TABLE["cases"] if "error_at" in case]


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case["query"])
def test_a_query_keeps_the_rows_of_the_table(case):
    query = Filter.parse(case["query"])
    verdicts = flips(TABLE["rows"], TABLE["other"]) if "with_other" in case else None
    kept = [row["address"] for row in TABLE["rows"] if query.keeps(row, TABLE["found"], verdicts)]
    assert kept == case["addresses"]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case["query"])
def test_a_fault_is_named_with_its_place(case):
    with pytest.raises(FilterError, match=rf"\(character {case['error_at'] + 1} of") as caught:
        Filter.parse(case["query"])
    assert caught.value.at == case["error_at"]


def test_a_misspelt_name_is_answered_with_the_known_names():
    with pytest.raises(FilterError, match="'rihgt'; known are arm, calls, error,"):
        Filter.parse("rihgt:yes")


_PIECES = st.sampled_from([*NAMES, *'"-,:<>= ', "and", "yes", "no", "none", "3", "-1.5", "é", "\0"])


@given(st.one_of(st.text(), st.lists(_PIECES).map("".join)))
def test_any_line_is_read_or_refused_with_a_place_in_it(line):
    try:
        query = Filter.parse(line)
    except FilterError as error:
        assert 0 <= error.at <= len(line)
        return
    found = dict.fromkeys(query.texts, ())
    for row in TABLE["rows"]:
        assert query.keeps(row, found) in (True, False)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters='"'), min_size=1), max_size=3))
def test_a_text_between_quotes_is_searched_for_as_it_stands(texts):
    line = " ".join(f'"{text}"' for text in texts)
    assert Filter.parse(line).texts == list(dict.fromkeys(texts))
