"""A real browser without a window, as people look at pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def pages(width: int = 1500, height: int = 950, dark: bool = False) -> Iterator[Any]:
    """Makes new pages of Playwright's, each in a profile of its own; skips without a browser."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install the distribution's package")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield lambda: browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
            ).new_page()
        finally:
            browser.close()


def keep(page: Any, name: str) -> None:
    """A screenshot where ``AUTOCOMPRESS_SCREENSHOTS`` names a folder for them."""
    if folder := os.environ.get("AUTOCOMPRESS_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
