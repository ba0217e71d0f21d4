"""Runs as a store of MLflow's shows them, and a model to register."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.mlflow.sink import MlflowSink
from autocompress.mlflow.store import Store
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal, read_trials
from autocompress.track.view import RunView


def runs_of(store: Store, experiment: str = "resnet20", query: str = "") -> list[Any]:
    client = store.client()
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], query, max_results=1000))


def content(store: Store) -> dict[str, Any]:
    """Everything of every child run, keyed by the trial."""
    found = {}
    for run in runs_of(store, query="attributes.run_name LIKE 'trial %'"):
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
        metrics = dict(run.data.metrics)
        found[tags["autocompress.trial"]] = (tags, dict(run.data.params), metrics, run.info.status)
    return found


def onnx_file(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def logged_live(folder: RunFolder, target: RunFolder, **more: Any) -> tuple[RunView, list[str]]:
    """Replay a run's trials through a journal and a sink, as a study would."""
    said: list[str] = []
    baseline = folder.read_baseline()
    assert baseline is not None
    target.write_study(folder.read_study())
    target.write_baseline(baseline)
    target.write_front(folder.read_front())
    layers = folder.read_front()["layers"]
    with Journal(target) as journal:
        sink = MlflowSink(
            journal, baseline, experiment="resnet20", layers=layers, say=said.append, **more
        )
        for trial in read_trials(folder):
            journal.record(trial)
            sink.record(trial)
        view = RunView.load(target)
        sink.close(view)
    return view, said
