"""GSPO: the ratio of sequences, with the engine's mismatch corrected by token."""

from __future__ import annotations

from agents import gspo


def test_the_ratio_is_the_sequences_and_the_mismatch_is_corrected_by_token(handed):
    gspo.train(gspo.Settings(), None)
    assert handed["arguments"] == {"importance_sampling_level": "sequence"}
    settings = handed["settings"]
    assert settings.correction == "token"
    assert settings.clip_low < settings.clip_high < 1e-3
