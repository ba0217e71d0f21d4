"""Whether every text of the report can be read on what lies behind it (WCAG 2, level AA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autocompress.report.html import write_report
from autocompress.track.folder import RunFolder

# A canvas turns any notation of a colour into its four bytes.
_TEXTS = """() => {
  const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
    .getContext('2d', {willReadFrequently: true});
  const bytes = color => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data]; };
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const own = node.parentElement;
    if (!node.textContent.trim() || own.closest('svg') || !own.checkVisibility()) continue;
    const behind = [];
    for (let e = own; e; e = e.parentElement)
      behind.push(bytes(getComputedStyle(e).backgroundColor));
    found.push({text: node.textContent.trim().slice(0, 40), kind: own.tagName + '.' + own.className,
      color: bytes(getComputedStyle(own).color), behind});
  }
  return found;
}"""


def _seen(behind: list[list[int]]) -> list[float]:
    """The colour of a stack of layers, the topmost first, on white paper."""
    color = [255.0, 255.0, 255.0]
    for *layer, alpha in reversed(behind):
        share = alpha / 255
        color = [share * new + (1 - share) * old for new, old in zip(layer, color, strict=True)]
    return color


def _luminance(color: list[float]) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (x / 255 for x in color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(text: list[float], ground: list[float]) -> float:
    low, high = sorted((_luminance(text), _luminance(ground)))
    return (high + 0.05) / (low + 0.05)


def test_the_measure_is_that_of_the_standard() -> None:
    assert _contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert _contrast([0x76] * 3, [255] * 3) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("look", ["light", "dark", "print"])
def test_every_text_stands_out_from_what_is_behind_it(
    opened: Callable[..., Any], run: RunFolder, look: str
) -> None:
    page = opened(write_report(run), dark=look == "dark")
    page.get_by_role("button", name="all measured").click()
    if look == "print":
        page.emulate_media(media="print")
        page.wait_for_selector("html.paper")
    faint = set()
    techniques = page.locator("#techniques button:visible").count() if look != "print" else 1
    assert techniques >= 1
    for place in range(techniques):
        if look != "print":
            page.locator("#techniques button").nth(place).click()
        texts = page.evaluate(_TEXTS)
        assert len(texts) > 200
        for each in texts:
            ratio = _contrast(each["color"][:3], _seen(each["behind"]))
            if ratio < 4.5:
                faint.add((round(ratio, 1), each["kind"], each["text"]))
    assert sorted(faint) == []
