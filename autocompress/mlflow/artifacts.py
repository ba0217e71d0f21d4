"""Files that a store is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.machine.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient


def as_json(content: object) -> str:
    """For people to read, too."""
    return json.dumps(content, indent=2)


def log_text(client: MlflowClient, run: str, text: str, place: str) -> None:
    """As the client's method of this name, whose temporary file stays where a process is killed.

    Args:
        client: of the store.
        run: its identifier.
        text: of the file.
        place: relative to the run's artifacts.
    """
    with scratch_folder("mlflow") as folder:
        path = folder / Path(place).name
        path.write_text(text, encoding="utf-8")
        beside = Path(place).parent
        client.log_artifact(run, str(path), None if beside == Path() else beside.as_posix())


def save_onnx(path: Path, folder: Path) -> None:
    """An ONNX file as a model of MLflow's in a folder.

    Requirements are stated: MLflow would find them out by loading the model in a new process.
    """
    import mlflow.onnx
    import onnx

    mlflow.onnx.save_model(onnx.load(str(path)), str(folder), pip_requirements=["onnxruntime"])
