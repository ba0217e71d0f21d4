"""Shows trials in MLflow while the study runs, without ever holding it up or stopping it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocompress.mlflow.store import Recorder, Store
from autocompress.results.metric import ACCURACY, LATENCY, Measurement, Metric
from autocompress.results.trial import Trial
from autocompress.track.journal import Entry, Journal
from autocompress.track.view import RunView

_RETRY_S = 60.0

Say = Callable[[str], None]
Gate = Callable[[], AbstractContextManager[Any]]


class MlflowSink:
    """A ``Sink`` that shows trials in MLflow from a thread of its own, and never stops a study.

    Give it trials after the journal has them. What was in the journal already (a resumed run) is
    made up for first. While the store is down, trials wait; a remark is made once.

    Args:
        journal: of the run; its times are used.
        baseline: the uncompressed model on val.
        experiment: its name; by custom the study's.
        uri: tracking URI, or ``None`` for the SQLite file beside the run.
        objectives: quality first.
        layers: all layers that policies may touch.
        say: takes remarks for people.
        gate: entered around every step, so that none falls into somebody's latency measurement.
    """

    def __init__(
        self,
        journal: Journal,
        baseline: Measurement,
        *,
        experiment: str,
        uri: str | None = None,
        objectives: tuple[Metric, ...] = (ACCURACY, LATENCY),
        layers: Sequence[str] = (),
        say: Say = lambda text: None,
        gate: Gate = nullcontext,
    ) -> None:
        self._journal, self._say, self._gate = journal, say, gate
        store = Store.of(journal.folder, uri)
        self.recorder = Recorder(journal.folder, baseline, store, experiment, objectives, layers)
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._waiting: list[Entry] = []
        self._failed = False
        for entry in journal.entries():
            self._queue.put(entry)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def record(self, trial: Trial) -> None:
        """Show a trial soon; returns at once."""
        last = self._journal.last
        if last is None or last.trial.number != trial.number:
            last = Entry(trial, self._journal.elapsed_s, datetime.now(UTC).isoformat())
        self._queue.put(last)

    def _work(self) -> None:
        more = True
        while more:
            try:
                entry = self._queue.get(timeout=_RETRY_S if self._waiting else None)
                more = entry is not None
                if entry is not None:
                    self._waiting.append(entry)
            except queue.Empty:
                self._failed = False
            if not self._failed or not more:
                self._send()

    def _send(self) -> None:
        """Log what waits, oldest first; at the first refusal the rest goes on waiting."""
        while self._waiting:
            try:
                with self._gate():
                    self.recorder.add(self._waiting[0])
            except Exception as error:  # a study must survive whatever a tracking store does
                self._refused(error)
                return
            self._waiting.pop(0)
        self._failed = False

    def _refused(self, error: Exception) -> None:
        if not self._failed:
            self._say(
                f"MLflow at {self.recorder.store.uri} does not take trials "
                f"({type(error).__name__}: {_first_line(error)}). The study goes on; "
                "`autocompress ui` shows them later, from the journal."
            )
        self._failed = True

    def close(self, view: RunView | None = None, best_model: Path | None = None) -> bool:
        """Flush, and with a view close the study in MLflow too.

        Args:
            view: of the whole run.
            best_model: exported file of the answer, to be registered.

        Returns:
            Whether MLflow holds everything.
        """
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        if self._waiting:
            return False
        if view is not None:
            try:
                for remark in self.recorder.finish(view, best_model):
                    self._say(remark)
            except Exception as error:  # as above; the next sync makes up for it
                self._refused(error)
                return False
        return True


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else "no message"
