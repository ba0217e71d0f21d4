"""Shows a run in MLflow: one parent run per study, one child run per trial.

MLflow is a view of the journal, never the truth: whatever it refuses or misses is made up for by
``sync``, which can be repeated at any time without doubling anything. The only file that imports
mlflow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from autocompress.machine.scratch import scratch_folder
from autocompress.mlflow import labels, views
from autocompress.mlflow.artifacts import as_json, log_text, save_onnx
from autocompress.mlflow.asking import check_named
from autocompress.mlflow.database import check_database
from autocompress.mlflow.names import experiment_name, model_name, safe_part, tag_value
from autocompress.policy.writing import printable
from autocompress.report.tables import summary_json
from autocompress.results.front import reference_point
from autocompress.results.metric import ACCURACY, LATENCY, Measurement, Metric
from autocompress.results.trial import TrialState
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Entry, read_entries
from autocompress.track.view import Growth, Point, RunView, score, value

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric as Logged

#: a dead server must cost seconds, not the four minutes that MLflow's defaults take
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
_TRIAL_TAG = "autocompress.trial"
_RUN_TAG = "autocompress.run"


@dataclass(frozen=True, slots=True)
class Store:
    """Where MLflow keeps its records.

    Args:
        uri: absolute tracking URI.
        artifacts: folder of artifacts, or ``None`` to leave that to the server.
    """

    uri: str
    artifacts: Path | None = None

    @classmethod
    def beside(cls, runs: str | Path) -> Store:
        """The default: an SQLite file in the folder of the runs, artifacts beside it."""
        root = Path(runs).resolve()
        return cls(f"sqlite:///{root / 'mlflow.db'}", root / "mlflow-artifacts")

    @classmethod
    def of(cls, folder: RunFolder, uri: str | None) -> Store:
        """The asked store, or the default one of a run.

        A database alone would put artifacts into the working directory: they go beside the run.
        """
        default = cls.beside(folder.root.resolve().parent)
        if not uri:
            return default
        remote = urlsplit(uri).scheme in ("http", "https", "databricks", "uc")
        return cls(uri, None if remote else default.artifacts)

    def client(self) -> MlflowClient:
        """Open the store; a new SQLite file gets its tables, which takes seconds.

        Raises:
            AutocompressError: no database answers at its address.
        """
        check_database(self.uri)
        for name, text in ENVIRONMENT.items():
            os.environ.setdefault(name, text)
        from mlflow import MlflowClient

        for chatty in ("mlflow.store.db.utils", "alembic"):  # they tell of every table made
            logging.getLogger(chatty).setLevel(logging.WARNING)
        if self.artifacts is not None:
            self.artifacts.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)


@dataclass
class Recorder:
    """Writes one run into a store; every step can be repeated. Only the controller owns one.

    Args:
        folder: of the run.
        baseline: the uncompressed model on val.
        store: where to write.
        experiment: its name; by custom the study's. It is made one line of printable characters.
        objectives: quality first.
        layers: all layers that policies may touch, for means over them.
    """

    folder: RunFolder
    baseline: Measurement
    store: Store
    experiment: str
    objectives: tuple[Metric, ...] = (ACCURACY, LATENCY)
    layers: Sequence[str] = ()
    experiment_id: str = ""
    parent: str = ""
    children: dict[int, str] = field(default_factory=dict)
    _tags: dict[int, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._growth = Growth(self.objectives, reference_point(self.baseline, self.objectives))
        self._client: MlflowClient | None = None
        self._step = 0
        self._started: int | None = None
        self._ended: int | None = None
        self._identity = tag_value(self.folder.identity())
        self.experiment = experiment_name(self.experiment)

    def compared(self) -> list[str]:
        """Run ids of the trials worth comparing: complete ones, the front's first."""
        complete = [n for n in self.children if self._tags[n].get("state") == "COMPLETE"]
        complete.sort(key=lambda n: (self._tags[n].get("front") != "true", n))
        return [self.children[n] for n in complete]

    @property
    def client(self) -> MlflowClient:
        """The open store; looks up, or makes, the experiment and the parent run at first use."""
        if self._client is None:
            client = self.store.client()
            self.experiment_id = self._find_experiment(client)
            views.prepare(client, self.experiment_id, self.objectives)
            self.parent = self._find_parent(client)
            self._find_children(client)
            self._client = client
        return self._client

    def _find_experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        root = self.store.artifacts
        location = (root / safe_part(self.experiment)).as_uri() if root else None
        return str(client.create_experiment(self.experiment, artifact_location=location))

    def _find_parent(self, client: MlflowClient) -> str:
        query = f"tags.`{_RUN_TAG}` = '{self._identity}'"
        found = client.search_runs([self.experiment_id], query)
        if found:
            return str(found[0].info.run_id)
        tags = {_RUN_TAG: self._identity, "autocompress.kind": "study"}
        run = client.create_run(
            self.experiment_id, self._started, tags=tags, run_name=printable(self.folder.name)
        )
        return str(run.info.run_id)

    def _find_children(self, client: MlflowClient) -> None:
        """Which trials are there; half-logged ones, left by a kill, are taken away."""
        token = None
        while True:
            page = client.search_runs(
                [self.experiment_id],
                f"tags.`mlflow.parentRunId` = '{self.parent}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                number = int(run.data.tags[_TRIAL_TAG].rpartition("/")[2])
                if run.info.status not in ("FINISHED", "FAILED"):
                    client.delete_run(run.info.run_id)
                    continue
                self.children[number] = run.info.run_id
                self._tags[number] = dict(run.data.tags)
            token = page.token
            if not token:
                return

    def add(self, entry: Entry) -> None:
        """Log one trial, and what it did to the front.

        After an error the next call looks at the store anew, and clears away what is half-logged.
        """
        self._ended = _milliseconds(entry.finished)
        self._started = self._started or self._ended - int(1000 * entry.trial.seconds)
        try:
            self._add(self.client, entry)
        except BaseException:
            self._client = None
            raise

    def _add(self, client: MlflowClient, entry: Entry) -> None:
        trial = entry.trial
        before = {t.number for t in self._growth.front}
        point = self._growth.add(trial, entry.elapsed_s)
        after = {t.number for t in self._growth.front}
        wanted = {
            _TRIAL_TAG: f"{self._identity}/{trial.number}",
            "mlflow.parentRunId": self.parent,
            **labels.trial_tags(trial, front=trial.number in after),
        }
        if trial.number not in self.children:
            self._write_child(client, entry, wanted, point)
            self._tags[trial.number] = wanted
            if point is not None:
                self._log_point(client, entry, point)
        self._step += point is not None
        for number in before - after:
            self._set_tag(client, number, "front", "false")

    def _write_child(
        self, client: MlflowClient, entry: Entry, tags: Mapping[str, str], point: Point | None
    ) -> None:
        from mlflow.entities import Param, RunTag

        trial, end = entry.trial, _milliseconds(entry.finished)
        start = end - int(1000 * trial.seconds)
        run = client.create_run(
            self.experiment_id,
            start_time=start,
            tags={k: tags[k] for k in (_TRIAL_TAG, "mlflow.parentRunId")},
            run_name=f"trial {trial.number}",
        )
        run_id = str(run.info.run_id)
        metrics = labels.trial_metrics(entry, self.baseline, self.layers)
        if point is not None:
            metrics["hypervolume"] = point.hypervolume
        client.log_batch(
            run_id,
            _logged(metrics, end),
            [Param(name, text) for name, text in labels.trial_params(trial, self.layers).items()],
            [RunTag(name, text) for name, text in tags.items()],
        )
        status = "FAILED" if trial.state is TrialState.FAILED else "FINISHED"
        client.set_terminated(run_id, status, end)
        self.children[trial.number] = run_id

    def _log_point(self, client: MlflowClient, entry: Entry, point: Point) -> None:
        now = _milliseconds(entry.finished)
        values = {"hypervolume": point.hypervolume, "front_size": float(len(self._growth.front))}
        if point.best_quality is not None:
            values[f"best_feasible_{self.objectives[0].name}"] = point.best_quality
        client.log_batch(self.parent, _logged(values, now, self._step))

    def _set_tag(self, client: MlflowClient, number: int, name: str, text: str) -> None:
        tags = self._tags.get(number)
        if tags is not None and number in self.children and tags.get(name) != text:
            client.set_tag(self.children[number], name, text)
            tags[name] = text

    def close(self, view: RunView, best_model: Path | None = None) -> list[str]:
        """Close the study: the front's tags and artifacts, the plots, the best model.

        Args:
            view: of the whole run.
            best_model: exported file of the answer; registered where it is ONNX.

        Returns:
            Remarks for people.
        """
        client = self.client
        front = {t.number for t in view.front}
        for trial in view.trials:
            self._set_tag(client, trial.number, "feasible", str(trial.feasible).lower())
            self._set_tag(client, trial.number, "front", str(trial.number in front).lower())
            best = str(view.best is not None and trial.number == view.best.number).lower()
            self._set_tag(client, trial.number, "best", best)
        for trial in view.front:
            if trial.number in self.children:
                policy = as_json(trial.policy.as_dict())
                log_text(client, self.children[trial.number], policy, "policy.json")
        self._write_study(client, view)
        remarks = self._register(client, view, best_model) if best_model is not None else []
        client.set_terminated(self.parent, "FINISHED", self._ended)
        return remarks

    def _write_study(self, client: MlflowClient, view: RunView) -> None:
        """Parameters, final figures, tables and plots on the parent run."""
        from mlflow.entities import Param, RunTag

        known = client.get_run(self.parent).data.params
        client.log_batch(
            self.parent,
            _logged(labels.answer_metrics(view), self._ended or 0),
            params=[Param(k, v) for k, v in labels.study_params(view).items() if k not in known],
            tags=[RunTag(k, v) for k, v in labels.study_tags(view).items()],
        )
        columns, rows = labels.front_rows(view)
        for name, text in {
            "front.json": as_json({"columns": columns, "data": rows}),
            "front.csv": labels.as_csv(columns, rows),
            "summary.json": as_json(summary_json(view, every=False)),
        }.items():
            log_text(client, self.parent, text, f"front/{name}")
        # the tag makes MLflow show the file as a table; `log_table` would append at each sync
        shown = json.dumps([{"path": "front/front.json", "type": "table"}])
        client.set_tag(self.parent, "mlflow.loggedArtifacts", shown)
        if self.folder.report.is_file():
            client.log_artifact(self.parent, str(self.folder.report))

    def _register(self, client: MlflowClient, view: RunView, path: Path) -> list[str]:
        """Log the best model as an ONNX model and register it, once per answer."""
        best = view.best
        if best is None:
            return []
        if path.suffix != ".onnx":
            client.log_artifact(self.parent, str(path), "model")
            return [f"{path.name} is no ONNX file: MLflow keeps it as a file, not as a model."]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = model_name(self.experiment)
        known = f"name = '{name}' and tags.digest = '{digest}' and tags.run = '{self._identity}'"
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        elif client.search_model_versions(known):
            return []
        check = view.verified(best) or best
        figures = {view.quality.name: score(check), "latency_ms": value(best, "latency_ms")}
        model = client.create_logged_model(
            self.experiment_id, name=name, source_run_id=self.parent, model_type="compressed"
        )
        with scratch_folder("mlflow") as folder:
            save_onnx(path, folder / "model")
            client.log_model_artifacts(model.model_id, str(folder / "model"))
        client.finalize_logged_model(model.model_id, "READY")
        tags = {"trial": str(best.number), "run": self._identity, "digest": digest}
        tags |= {k: f"{v:.6g}" for k, v in figures.items() if v is not None}
        version = client.create_model_version(
            name, model.artifact_location, self.parent, tags=tags, model_id=model.model_id
        )
        return [f"MLflow registered {name} version {version.version}."]


def sync(
    run: str | Path | RunFolder,
    *,
    uri: str | None = None,
    experiment: str | None = None,
    view: RunView | None = None,
    best_model: Path | None = None,
) -> Recorder:
    """Bring MLflow to what the journal says; repeating it changes nothing.

    Args:
        run: the run's folder.
        uri: tracking URI, or ``None`` for the SQLite file beside the run.
        experiment: its name; ``None`` for what the study says.
        view: of the run, where it was read before.
        best_model: exported file of the answer; ``None`` for what ``front.json`` says.

    Raises:
        InputError: no run is there, or no ``uri`` was given and its study names another store.
        mlflow.exceptions.MlflowException: the store refuses.
    """
    folder = RunFolder.open(run.root if isinstance(run, RunFolder) else run)
    view = view or RunView.load(folder)
    asked = view.study.tracking
    if uri is None:
        check_named(folder, asked.uri, Store.of(folder, None).uri)
    name = experiment or asked.experiment or view.study.name or folder.name
    recorder = Recorder(
        folder,
        view.baseline,
        Store.of(folder, uri),
        str(name),
        view.objectives,
        view.layer_names,
    )
    judged = view.by_number
    for entry in read_entries(folder):
        recorder.add(replace(entry, trial=judged.get(entry.trial.number, entry.trial)))
    recorder.close(view, best_model or (folder.best_model() if asked.register_best else None))
    return recorder


def _logged(values: Mapping[str, float], moment: int, step: int = 0) -> list[Logged]:
    from mlflow.entities import Metric as Logged

    return [Logged(name, number, moment, step) for name, number in values.items()]


def _milliseconds(finished: str) -> int:
    moment = datetime.fromisoformat(finished) if finished else datetime.now(UTC)
    return int(moment.timestamp() * 1000)
