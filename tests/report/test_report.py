"""The report opens without a network, says what happened, and draws in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from autocompress.report.html import write_report
from autocompress.report.tables import write_summary
from autocompress.report.verdict import verdict
from autocompress.results.trial import Phase, Trial
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal, read_trials
from autocompress.track.view import RunView

MakeRun = Callable[..., RunFolder]
_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects the visible text, the addresses, and tags that were not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def embedded(page: str) -> dict[str, Any]:
    """The data that the page's script reads."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    data: dict[str, Any] = json.loads(text)
    return data


def test_the_report_stands_alone_and_tells_the_verdict(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path / "resnet20", 40)
    path = write_report(folder)
    reader = Reader(path.read_text())
    view = RunView.load(folder)
    assert reader.addresses == []
    assert not reader.open
    assert not reader.wrong
    judged = verdict(view)
    assert judged.headline in reader.text
    assert all(sentence in reader.text for sentence in judged.sentences)
    assert embedded(path.read_text())["layers"] == list(view.layer_names)
    assert "Did distillation help?" in reader.text
    assert "ExportError: the file does not do what the model does" in reader.text


def test_the_layers_show_the_channels_that_were_kept(tmp_path: Path, make_run: MakeRun) -> None:
    """A policy asks for a ratio; units, heads and multiples round it."""
    folder = make_run(tmp_path / "r", 20)
    view = RunView.load(folder)
    assert view.best is not None
    name, own = next((n, p) for n, p in view.best.policy.layers.items() if p.prune_ratio)
    other = view.layer_names[1]

    def told(layer: str) -> tuple[str, float]:
        """What the page says of a layer of the answer."""
        data = embedded(write_report(folder).read_text())
        assert view.best is not None
        number = data["policies"][str(view.best.number)][data["layers"].index(layer)]
        text, share = data["cells"][number][data["techniques"].index("prune")]
        return text, share

    assert told(name) == (f"{1 - own.prune_ratio:.0%} of the channels", 1 - own.prune_ratio)
    kept = {view.best.number: {name: (24, 64), other: (48, 64)}}
    write_summary(folder, replace(view, kept=kept))
    again = RunView.load(folder)
    assert again.kept == kept
    assert told(name) == ("24 of 64 channels", 24 / 64)
    # one that is narrower because it passes others' channels on
    assert view.best.policy[other].prune_ratio == 0
    assert told(other) == ("48 of 64 channels", 48 / 64)


def test_an_infeasible_an_empty_and_a_started_run_have_a_report(
    tmp_path: Path, make_run: MakeRun
) -> None:
    text = Reader(write_report(make_run(tmp_path / "a", 20, feasible=False)).read_text()).text
    assert "No policy met the budget" in text
    assert "The nearest found is trial" in text
    source = make_run(tmp_path / "b", 20)
    empty = RunFolder.create(tmp_path / "c")
    baseline = source.read_baseline()
    assert baseline is not None
    empty.write_baseline(baseline)
    empty.write_study({"name": "c"})
    assert "nothing nearest to show" in Reader(write_report(empty).read_text()).text


def test_names_from_outside_cannot_become_markup(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path / "r", 5)
    nasty = "</script><script>alert(1)</script>"
    folder.write_study({**folder.read_study(), "name": nasty})
    with Journal(folder) as journal:
        last = journal.load()[0]
        assert last.measurement is not None
        journal.record(
            Trial(len(journal), last.policy, Phase(), origin=nasty,
                  measurement=last.measurement, violations=last.violations)
        )  # fmt: skip
    page = write_report(folder).read_text()
    assert "alert(1)</script>" not in page
    reader = Reader(page)
    assert not reader.wrong
    assert nasty in reader.text
    assert nasty in embedded(page)["trials"]["words"]


def changed(source: RunFolder, root: Path, change: Callable[[dict[str, Any]], None]) -> RunFolder:
    """A run whose measurements say something else beside their values."""
    folder, baseline = RunFolder.create(root), source.read_baseline()
    assert baseline is not None
    folder.write_baseline(baseline)
    with Journal(folder) as journal:
        for trial in read_trials(source):
            data = trial.as_dict()
            if data["measurement"]:
                change(data["measurement"]["context"])
            journal.record(Trial.from_dict(data))
    return folder


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("noisy", "too noisy"), ("disturbed", "Something else slowed the machine")],
)
def test_noise_is_said(tmp_path: Path, make_run: MakeRun, kind: str, sentence: str) -> None:
    def told(context: dict[str, Any]) -> None:
        if "timing" in context:
            context["timing"][kind] = True

    source = make_run(tmp_path / "a", 5)
    noisy = changed(source, tmp_path / "b", told)
    assert sentence in Reader(write_report(noisy).read_text()).text
    assert "reached the asked precision" not in Reader(write_report(noisy).read_text()).text
    assert sentence not in Reader(write_report(source).read_text()).text
    assert "reached the asked precision" in Reader(write_report(source).read_text()).text


def test_further_targets_are_named(tmp_path: Path, make_run: MakeRun) -> None:
    def told(context: dict[str, Any]) -> None:
        context["also_on"] = [{"runtime": "openvino", "threads": 2}, {"runtime": "torch"}]

    page = Reader(
        write_report(changed(make_run(tmp_path / "a", 5), tmp_path / "b", told)).read_text()
    )
    assert "target 2, of latency_2 runtime openvino; threads 2" in page.text
    assert "target 3, of latency_3 runtime torch" in page.text
