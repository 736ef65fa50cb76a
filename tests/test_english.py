"""The linter of the project's English notices each banned form, and accepts its correction."""

import importlib.util
import sys

import pytest
from helpers import ROOT

_SPEC = importlib.util.spec_from_file_location("english", ROOT / ".ci" / "english.py")
english = importlib.util.module_from_spec(_SPEC)
sys.modules["english"] = english  # dataclasses look their module up
_SPEC.loader.exec_module(english)

MODULE = '''
def train(logprobs: torch.Tensor, mask: torch.Tensor, rate: float) -> None:
    """Trains the model.

    Args:
        logprobs: {logprobs}
        mask: Loss mask, shape (N, T).
        {rate}: Learning rate.

    Raises:
        ValueError: The rate is negative.
    """
    if rate < 0:
        raise ValueError(f"{error}")
    parser.add_argument("--rate", help="{help}")
'''
GOOD = {
    "logprobs": "Log-probs, shape (N, T).",
    "rate": "rate",
    "error": "the rate {rate} is negative",
    "help": "learning rate",
}


def rules_of(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return {finding.rule for finding in english.findings([str(path)])}


@pytest.mark.parametrize("rule", english.RULES, ids=lambda rule: rule.name)
def test_a_banned_form_is_found_in_each_kind_of_text_and_its_correction_is_accepted(rule, tmp_path):
    for kind in rule.kinds:
        for text, bad in ((rule.bad, True), (rule.good, False)):
            found = [a.rule for a in english.forms(english.Text(tmp_path, 1, kind, text))]
            assert (rule.name in found) == bad, (kind, text, found)


def test_a_module_without_banned_forms_has_no_findings(tmp_path):
    assert rules_of(tmp_path, "good.py", MODULE.format(**GOOD)) == set()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"logprobs": "It."}, "pronoun-argument"),
        ({"logprobs": "Log-probs of the sampled tokens."}, "missing-shape"),
        ({"rate": "speed"}, "missing-arguments"),
        ({"error": "there is no rate"}, "error-there-is-no"),
        ({"help": "one that is small"}, "pronoun-clause"),
    ],
)
def test_texts_of_a_module_are_found_where_they_stand(change, rule, tmp_path):
    assert rule in rules_of(tmp_path, "bad.py", MODULE.format(**GOOD | change))


def test_names_that_are_everyday_words_are_found(tmp_path):
    text = 'class Server:\n    """A server."""\n\n    own: str\n\n    def found(self): ...\n'
    assert rules_of(tmp_path, "names.py", text) == {"everyday-name"}


def test_code_on_a_page_is_not_prose_and_text_beside_it_is(tmp_path):
    page = "# Title\n\nRun it.\n\n```python\nprint('is no algorithm')\n```\n\n{}\n"
    assert rules_of(tmp_path, "good.md", page.format("`is no algorithm` is code.")) == set()
    assert rules_of(tmp_path, "bad.md", page.format("It is no algorithm.")) == {"is-none"}


def test_the_length_of_sentences_is_counted_without_code_and_tables(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("One two three. Four\nfive?\n\n| a | b |\n\n```\nno words\n```\n\n- six\n")
    assert english.sentences([path]) == [3, 2, 1]
