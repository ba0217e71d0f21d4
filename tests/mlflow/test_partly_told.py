"""Runs in which a cost is told of some trials only: a 99th percentile needs undisturbed calls."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import finished_run, rewritten
from mlflow.tracking import MlflowClient
from rich.console import Console

from autocompress.policy.costs import P99
from autocompress.report.html import write_report
from autocompress.report.tables import front_table, summary_json
from autocompress.results.metric import Measurement
from autocompress.run.tracking import track
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

BASE, FIRST, SECOND = 1.0, 0.1, 0.6
"""Latencies of the uncompressed model and of the two trials, in ms."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("partly") / "run", BASE)


@pytest.mark.parametrize("told", [{BASE}, {BASE, FIRST}, {BASE, SECOND}, {FIRST}, {SECOND}])
def test_whatever_is_told_of_a_run_does_without(
    finished: RunFolder, tmp_path: Path, told: set[float]
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")

    def partly(found: Measurement) -> Measurement:
        values = {name: number for name, number in found.values.items() if name != P99}
        more = {P99: 2 * found["latency_ms"]} if found["latency_ms"] in told else {}
        return replace(found, values={**values, **more})

    rewritten(folder, partly)
    view = RunView.load(folder)
    assert [t.number for t in view.front] == [0, 1]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    track(str(folder.root), uri=uri, experiment="partly")
    client = MlflowClient(uri)
    (parent,) = [
        run
        for run in client.search_runs([client.get_experiment_by_name("partly").experiment_id])
        if "mlflow.parentRunId" not in run.data.tags
    ]
    text = Path(client.download_artifacts(parent.info.run_id, "front/front.csv", str(tmp_path)))
    rows = list(csv.DictReader(io.StringIO(text.read_text(encoding="utf-8"))))
    assert [row["latency_ms"] for row in rows] == ["0.1", "0.6"]
    for row, ms in zip(rows, (FIRST, SECOND), strict=True):
        assert row.get(P99, "") == (str(2 * ms) if ms in told else "")
    write_report(folder, view)
    Console(width=200, file=io.StringIO()).print(front_table(view))
    shown = {t["number"]: t.get(P99) for t in json.loads(json.dumps(summary_json(view)))["trials"]}
    assert shown == {n: 2 * ms if ms in told else None for n, ms in enumerate((FIRST, SECOND))}
