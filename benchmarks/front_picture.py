"""Draw the front of a finished run as a small SVG, in light and dark.

python benchmarks/front_picture.py runs/vgg16 -o docs/front.svg
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from autocompress.results.trial import Trial
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView, score

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 46
_FAR = 8.0
"""Of latencies, the largest over the smallest: beyond it their axis is logarithmic."""
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
text { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; }
.soft { fill: #59636e; } .grid { stroke: #d9dee3; } .axis { stroke: #59636e; }
.page { fill: #ffffff; } .any { fill: none; stroke: #0072b2; opacity: .45; }
.line { fill: none; stroke: #0072b2; stroke-width: 2; } .front { fill: #0072b2; }
.chosen { fill: #009e73; } .reference { fill: #e69f00; stroke: #1f2328; }
.whole { fill: none; stroke: #d55e00; stroke-width: 3; } .budget { stroke: #d55e00; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; stroke: #0d1117; } .soft { fill: #9aa4af; } .grid { stroke: #2c333b; }
  .page { fill: #0d1117; } .axis { stroke: #9aa4af; } .any, .line { stroke: #56b4e9; }
  .front { fill: #56b4e9; } .reference { stroke: #e6edf3; }
}
"""


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between two, ends included where they are round."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    found = (m * 10.0**p for p in powers for m in (1, 2, 5))
    return [x for x in found if low <= x <= high]


class Picture:
    """A run's trials in the plane of latency and quality.

    Args:
        view: of the run.
    """

    def __init__(self, view: RunView) -> None:
        self.view, self.shown = view, view.quality.shown
        base = view.baseline
        known = [*view.front, *view.reference_trials.values()]
        qualities = [base.score, *(score(t) or 0.0 for t in known)]
        low, high = self.shown(min(qualities)), self.shown(max(qualities))
        pad = max(0.12 * (high - low), 0.5)
        self.y = (low - pad, high + pad)
        times = [base["latency_ms"], *(t.measurement["latency_ms"] for t in view.compared)]
        self.log = max(times) > _FAR * min(times)
        self.x = (0.85 * min(times) if self.log else 0.0, (1.25 if self.log else 1.08) * max(times))

    def at(self, ms: float, quality: float) -> tuple[float, float]:
        """Place of a latency and a quality in the picture."""
        low, high, place = (math.log(max(x, 1e-9)) if self.log else x for x in (*self.x, ms))
        across = (place - low) / (high - low)
        up = (self.shown(quality) - self.y[0]) / (self.y[1] - self.y[0])
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    def of(self, trial: Trial) -> tuple[float, float]:
        """Place of a trial."""
        assert trial.measurement is not None
        return self.at(trial.measurement["latency_ms"], trial.measurement.score)

    def axes(self) -> list[str]:
        """Grid, numbers and titles."""
        bottom, right, found = HEIGHT - BOTTOM, WIDTH - RIGHT, []
        for ms in decades(*self.x) if self.log else ticks(*self.x):
            x = self.at(ms, 0)[0]
            found.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}"/>')
            found.append(
                f'<text class="soft" x="{x}" y="{bottom + 18}" text-anchor="middle">{ms:g}</text>'
            )
        for shown in ticks(*self.y):
            y = self.at(0, shown / self.shown(1.0))[1]
            found.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
            found.append(
                f'<text class="soft" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{shown:g}</text>'
            )
        quality = self.view.quality
        title = f"{quality.name}, {'%' if quality.fraction else quality.unit} (val)"
        found.append(f'<text x="{LEFT}" y="{TOP - 14}">{escape(title)}</text>')
        found.append(
            f'<text x="{right}" y="{HEIGHT - 10}" text-anchor="end">latency of the file, ms</text>'
        )
        return found

    def marks(self) -> list[str]:
        """Trials, the front, the answer, what it is set beside, and the budget."""
        view, found = self.view, []
        for limit in view.budget.limits:
            if limit.metric == "latency_ms":
                x = self.at(limit.bound(view.baseline.values), 0)[0]
                found.append(
                    f'<line class="budget" stroke-dasharray="6 4" x1="{x}" y1="{TOP}" x2="{x}" '
                    f'y2="{HEIGHT - BOTTOM}"/>'
                )
                found.append(f'<text class="soft" x="{x + 6}" y="{TOP + 12}">budget</text>')
        front = {t.number for t in view.front}
        for trial in view.compared:
            x, y = self.of(trial)
            if trial.number not in front and y < HEIGHT - BOTTOM:
                found.append(f'<circle class="any" cx="{x}" cy="{y}" r="4"/>')
        places = [self.of(t) for t in view.front]
        steps = [
            f"{'L' if i else 'M'}{x},{places[max(i - 1, 0)][1]} L{x},{y}"
            for i, (x, y) in enumerate(places)
        ]
        found.append(f'<path class="line" d="{" ".join(steps)}"/>')
        for trial, (x, y) in zip(view.front, places, strict=True):
            kind = "chosen" if view.best is not None and trial == view.best else "front"
            found.append(
                f'<circle class="{kind}" cx="{x}" cy="{y}" r="{7 if kind == "chosen" else 5}"/>'
            )
        for name, trial in view.reference_trials.items():
            x, y = self.of(trial)
            found.append(f'<path class="reference" d="M{x},{y - 7} l7,7 l-7,7 l-7,-7 z"/>')
            # below and to the left: beside the mark it would lie on the line of a near budget
            place = f'x="{x + 7:g}" y="{y + 22:g}" text-anchor="end"'
            found.append(f'<text class="soft" {place}>{escape(name)}</text>')
        x, y = self.at(view.baseline["latency_ms"], view.baseline.score)
        found.append(f'<circle class="whole" cx="{x}" cy="{y}" r="7"/>')
        found.append(f'<text x="{x - 12}" y="{y + 4}" text-anchor="end">uncompressed</text>')
        if view.best is not None:
            x, y = self.of(view.best)
            found.append(f'<text x="{x - 4}" y="{y - 14}" text-anchor="end">chosen</text>')
        return found


def picture(view: RunView) -> str:
    """The SVG."""
    drawn = Picture(view)
    parts = [*drawn.axes(), *drawn.marks()]
    label = f"Front of {view.study.name}: {view.quality.name} over latency"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">\n<style>{STYLE}</style>\n'
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Read a run, write its picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("front.svg"))
    asked = parser.parse_args(words)
    asked.output.write_text(picture(RunView.load(RunFolder.open(asked.run))), encoding="utf-8")


if __name__ == "__main__":
    main()
