"""The report on paper, and what stands beside its commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browser import keep

from autocompress.report.html import write_report
from autocompress.track.folder import RunFolder


def test_it_fits_a_printed_page(opened: Callable[..., Any], run: RunFolder) -> None:
    """A4 between its margins: 186 mm at 96 pixels per inch."""
    page = opened(write_report(run), 703)
    page.emulate_media(media="print")
    page.wait_for_selector("html.paper")
    page.wait_for_selector("#expected .main-svg")
    keep(page, "report-print")
    assert page.evaluate("document.documentElement.scrollWidth") == 703
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    sizes = {kind: page.locator(kind).evaluate_all(f"x => x.map({size})") for kind in ("th", "td")}
    assert max(sizes["th"]) <= min(sizes["td"])
    picks = page.locator("#trials button.pick")
    assert {*picks.evaluate_all(f"x => x.map({size})")} <= {*sizes["td"]}  # no larger than figures
    # a number stands in one line
    broken = "parseFloat(getComputedStyle(e).lineHeight) * 1.9 < e.clientHeight"
    alone = "!e.parentElement.querySelector('.wrap') && !e.closest('#heat')"
    found = (
        f"[...document.querySelectorAll('td:not(.wrap, .text)')].filter(e => {alone} && {broken})"
    )
    assert page.evaluate(f"{found}.map(e => e.outerHTML)") == []
    # what stands for a number is printed, though paper has no backgrounds
    for bar in (".bar i", "td.heat"):
        assert (
            page.locator(bar).first.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
        )
    kept = page.locator(".controls > :visible").all_inner_texts()
    assert len(kept) == 2  # which trials and which technique the tables show
    assert kept[0].startswith("front (")


@pytest.mark.parametrize("width", [1300, 390])
def test_no_button_covers_a_command(opened: Callable[..., Any], run: RunFolder, width: int) -> None:
    page = opened(write_report(run), width)
    covered = """[...document.querySelectorAll('.command')].filter(e => {
        const [text, button] = [...e.children].map(x => x.getBoundingClientRect());
        return button.left < text.right && text.left < button.right &&
          button.top < text.bottom && text.top < button.bottom; }).length"""
    assert page.locator(".command").count() >= 6
    assert page.evaluate(covered) == 0
