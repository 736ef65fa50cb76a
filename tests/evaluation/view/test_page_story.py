"""A new user's question, answered on the page of a real benchmark of recovery."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.page_runs import make_recover_run


@pytest.mark.slow
def test_why_did_the_model_fail_problem_7(tab, served, tmp_path):
    """Which call timed out, what its program prints with more time, what the true result gave."""
    pytest.importorskip("retool_env.evaluation.replay")
    with ThreadPoolExecutor() as threads:  # beside the loop of the browser's driver
        folder = threads.submit(make_recover_run, tmp_path).result()
    page = tab(served(folder).address).open()
    page.page.fill("#query", "problem:staged/7 arm:timeout right:no")
    page.wait("#matches", " of ")
    page.press("Enter")
    page.wait("#list a:focus")
    page.press("Enter")
    page.wait(".strip", "2 ✗ timeout")
    page.press("n")
    assert page.focused().startswith("Interpreter · call 2 ✗ timeout")
    call = page.page.locator(".failed-call")
    real = call.locator(".fault .result").inner_text()
    call.get_by_role("button", name="Run again").click()
    call.locator(".again-result", has_text="✓ ok").wait_for(timeout=60_000)
    assert call.locator(".again-result .result").inner_text() == real
    call.locator(".forks summary", has_text="control (true result): 2 of 2 right").click()
    call.get_by_role("link", name="fork 1 of this arm, side by side").first.click()
    page.wait(".pane:nth-child(2) .verdict", "✓ right")
