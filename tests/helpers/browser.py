"""A real browser for the tests of pages, and a guard against all that a page must not do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

WIDE = {"width": 1400, "height": 900}
NARROW = {"width": 390, "height": 844}

_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@contextmanager
def open_browser() -> Iterator:
    """A headless Chromium; the test is skipped if `make setup-browser` was not run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs `make setup-browser`")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs the Debian package chromium: run `make setup-browser`")
    with playwright.sync_playwright() as started:
        # A container has no user namespaces for Chromium's own sandbox; the pages are ours.
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = started.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Guard:
    """Collects what a page must not do: dialogs, errors, violations of its policy, other origins.

    Attributes:
        found: A line for each such event.
        allowed: Beginnings of lines that a test expects.
    """

    def __init__(self, page) -> None:
        self.found: list[str] = []
        self.allowed: list[str] = []
        page.add_init_script(_VIOLATIONS)
        page.on("dialog", lambda dialog: (self.found.append("dialog"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.found.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)
        self._origins: set[str] = set()

    def allow_origin(self, address: str) -> None:
        """Allows requests to the origin of an address."""
        self._origins.add(_origin(address))

    def check(self) -> None:
        """Fails if something was found that no test expects."""
        allowed = tuple(self.allowed)
        assert [line for line in self.found if not line.startswith(allowed or ("\0",))] == []

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.found.append(f"console: {message.text}")

    def _request(self, request) -> None:
        parts = urlsplit(request.url)
        if (
            parts.scheme not in ("data", "file", "about")
            and _origin(request.url) not in self._origins
        ):
            self.found.append(f"request: {request.url}")


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


class Tab:
    """A page of the browser with short ways to what the tests look at.

    Args:
        page: The page.
        base: The address of the viewer, or of a file.
    """

    def __init__(self, page, base: str) -> None:
        self.page = page
        self.base = base
        self.guard = Guard(page)
        self.guard.allow_origin(base)
        page.set_default_timeout(60_000)

    def open(self, fragment: str = "", rows: bool = True) -> Tab:
        """Opens the viewer with a fragment, and waits for its rows."""
        self.page.goto("about:blank")
        self.page.goto(self.base + fragment)
        if rows:
            self.page.wait_for_selector("#list li", state="attached")
        return self

    def press(self, *keys: str) -> None:
        """Presses keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, selector: str) -> str:
        """The text of the first element that fits, as a reader sees it."""
        return self.page.locator(selector).first.inner_text()

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that fit."""
        return self.page.locator(selector).all_inner_texts()

    def wait(self, selector: str, text: str | None = None) -> None:
        """Waits for a visible element that holds a text."""
        found = self.page.locator(selector)
        (found if text is None else found.filter(has_text=text)).first.wait_for()

    def focused(self) -> str:
        """The text of the element that has the focus."""
        return self.page.evaluate("document.activeElement.innerText")

    def fragment(self) -> str:
        """The fragment of the address."""
        return self.page.evaluate("decodeURIComponent(location.hash)")
