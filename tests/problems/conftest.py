"""A Hub for the tests of data sets."""

import pytest

from retool_env.problems import loading


@pytest.fixture
def hub(monkeypatch):
    """The tables of a Hub: a dictionary by id, configuration and split, which the test fills."""
    datasets = pytest.importorskip("datasets")
    tables = {}

    def load_dataset(repo, config=None, *, split):
        if (repo, config, split) not in tables:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{repo}' doesn't exist")
        return datasets.Dataset.from_list(tables[repo, config, split])

    monkeypatch.delenv("RETOOL_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(loading, "hub_answers", lambda repo: True)
    return tables
