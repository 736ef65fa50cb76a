"""The figures that a test draws, kept for a look at their lines."""

from __future__ import annotations

import pytest


@pytest.fixture
def drawn(monkeypatch):
    """The figures of matplotlib that were written to PNG files, in order."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    figures, savefig = [], figure.savefig

    def kept(self, *args, **options):
        figures.append(self)
        return savefig(self, *args, **options)

    monkeypatch.setattr(figure, "savefig", kept)
    return figures
