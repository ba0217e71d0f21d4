"""Shows trials in MLflow while the study runs, without ever holding it up or stopping it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from autocompress.mlflow.asking import track_command
from autocompress.mlflow.store import Recorder, Store
from autocompress.policy.writing import scrubbed, without_password
from autocompress.results.metric import ACCURACY, LATENCY, Measurement, Metric
from autocompress.results.trial import Trial
from autocompress.track.journal import Entry, Journal
from autocompress.track.view import RunView

_RETRY_S = 60.0
_PATIENCE_S = 0.8
"""How long the end of a study waits for a server; a store beside the run is always finished."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class _End:
    """No more trials: what the whole run and its answer are."""

    view: RunView | None
    model: Path | None


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
        pause: called before every step, so that none falls into somebody's latency measurement.
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
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal, self._say, self._pause = journal, say, pause
        self._catch_up = track_command(journal.folder, uri)
        store = Store.of(journal.folder, uri)
        self.recorder = Recorder(journal.folder, baseline, store, experiment, objectives, layers)
        self._queue: queue.SimpleQueue[Entry | _End] = queue.SimpleQueue()
        self._waiting: list[Entry] = []
        self._failed = self._whole = False
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
        end: _End | None = None
        while end is None:
            try:
                entry = self._queue.get(timeout=_RETRY_S if self._waiting else None)
                if isinstance(entry, _End):
                    end = entry
                else:
                    self._waiting.append(entry)
            except queue.Empty:
                self._failed = False
            if not self._failed or end is not None:
                self._send()
        self._whole = not self._waiting and (
            end.view is None or self._close_run(end.view, end.model)
        )

    def _close_run(self, view: RunView, model: Path | None) -> bool:
        try:
            for remark in self.recorder.close(view, model):
                self._say(remark)
        except Exception as error:  # the next sync makes up for it
            self._refused(error)
            return False
        return True

    def _send(self) -> None:
        """Log what waits, oldest first; at the first refusal the rest goes on waiting."""
        while self._waiting:
            try:
                self._pause()
                self.recorder.add(self._waiting[0])
            except Exception as error:  # a study must survive whatever a tracking store does
                self._refused(error)
                return
            self._waiting.pop(0)
        self._failed = False

    def _refused(self, error: Exception) -> None:
        if not self._failed:
            self._say(
                f"MLflow at {without_password(self.recorder.store.uri)} does not take trials "
                f"({type(error).__name__}: {self._first_line(error)}). The study goes on; "
                f"{self._catch_up} makes up for it later, from the journal."
            )
        self._failed = True

    def _first_line(self, error: Exception) -> str:
        text = scrubbed(str(error).strip(), self.recorder.store.uri)
        return text.splitlines()[0][:200] if text else "no message"

    def close(self, view: RunView | None = None, best_model: Path | None = None) -> bool:
        """Flush, and with a view close the study in MLflow too.

        Args:
            view: of the whole run.
            best_model: exported file of the answer, to be registered.

        Returns:
            Whether MLflow holds everything.
        """
        if self._thread.is_alive():
            self._queue.put(_End(view, best_model))
            uri = self.recorder.store.uri
            local = "://" not in uri or uri.startswith(("sqlite:", "file:"))
            self._thread.join(None if local else _PATIENCE_S)
        if self._thread.is_alive():
            self._say(
                f"MLflow at {without_password(self.recorder.store.uri)} is still taking records; "
                f"{self._catch_up} brings it up to date."
            )
        return self._whole
