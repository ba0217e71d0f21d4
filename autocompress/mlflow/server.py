"""Starts MLflow's server on the store of a folder of runs, and knows the pages worth opening.

MLflow's own start page leads elsewhere, therefore the deep links.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from autocompress.errors import AutocompressError, InputError
from autocompress.machine.ports import free_port
from autocompress.mlflow.store import ENVIRONMENT, Recorder, Store, sync
from autocompress.mlflow.views import VIEWS, key
from autocompress.track.folder import RunFolder
from autocompress.track.lock import writer_of


@dataclass(frozen=True, slots=True)
class Links:
    """Pages of one run.

    Args:
        front: the front's trials, cheapest first.
        trials: all of them, the latest first.
        charts: quality over cost, what policies have in common, hypervolume over time.
        study: the parent run, with the front as a table, plots and the report.
        runs: table of the experiment's runs, as MLflow shows it by itself.
        compare: MLflow's comparison of the front's trials with others.
    """

    front: str
    trials: str
    charts: str
    study: str
    runs: str
    compare: str


def links(
    base: str, experiment_id: str, parent: str, children: Sequence[str], *, most: int = 24
) -> Links:
    """Deep links into MLflow's pages.

    Args:
        base: address of the server.
        experiment_id, parent: as MLflow numbers them.
        children: run ids of the trials to compare, the most important first.
        most: longer comparisons make addresses that browsers refuse.
    """
    root = f"{base.rstrip('/')}/#"
    page = f"{root}/experiments/{experiment_id}/runs"
    # without the kind of work the interface shows the pages of another
    work = "workflowType=machine_learning"
    front, trials, charts = (f"{page}?viewStateShareKey={key(v)}&{work}" for v in VIEWS)
    chosen = quote(json.dumps(list(children[:most]), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return Links(
        front=front,
        trials=trials,
        charts=f"{charts}&compareRunsMode=CHART",
        study=f"{page}/{parent}?{work}",
        runs=f"{page}?{work}",
        compare=f"{root}/compare-runs?runs={chosen}&experiments={experiments}&{work}",
    )


def links_of(base: str, recorder: Recorder) -> Links:
    """The links of a run that was synchronized: front members first in the comparison."""
    return links(base, recorder.experiment_id, recorder.parent, recorder.compared())


class Server:
    """A running MLflow server; ends with the ``with`` block.

    Args:
        runs: folder of the runs; its store is made if it is not there.
        host, port: where to listen; of a taken port the next free one, of 0 any.
        wait_s: how long to wait for it to answer.

    Raises:
        InputError: nothing can listen there.
        AutocompressError: it ended or did not answer in time; the end of its log is shown.
    """

    def __init__(
        self, runs: str | Path, host: str = "127.0.0.1", port: int = 5000, *, wait_s: float = 120.0
    ) -> None:
        store = Store.beside(runs)
        if not Path(runs).is_dir():
            raise InputError(
                f"There is no folder of runs at {runs}. `autocompress search` makes one."
            )
        # made here: two of the server's workers would otherwise make its tables at once
        store.client().search_experiments(max_results=1)
        port = free_port(host, port)
        self.url = f"http://{host}:{port}"
        # a file, not a pipe: nobody reads it, and a full pipe would stop the server
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the server)
        python = [sys.executable, "-P", "-m"]
        command = [*python, "autocompress.mlflow.guard", *python, "mlflow", "server"]
        command += ["--host", host, "--port", str(port)]
        command += ["--backend-store-uri", store.uri, "--workers", "1"]
        command += ["--artifacts-destination", str(store.artifacts)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,  # never written to: it closes when this process is gone
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it has children of its own: they end together
        )
        try:
            self._wait_until_up(wait_s)
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise AutocompressError(
                    f"MLflow's server ended with code {self._process.returncode}:\n{self.log()}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AutocompressError(
            f"MLflow's server at {self.url} did not answer within {wait_s:.0f} s:\n{self.log()}"
        )

    def log(self, most: int = 2000) -> str:
        """The end of what the server printed."""
        self._log.flush()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - most))
        return self._log.read().decode("utf-8", "replace")

    def wait(self) -> int:
        """Until the server ends by itself, or Ctrl-C; returns its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """End the server and its workers; stopping twice does nothing."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
        # workers that their parent left behind
        self._signal(signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        if not self._log.closed:
            self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


Announce = Callable[[str, Mapping[str, Links], Mapping[str, str]], None]
"""Told the server's address, the pages of each run, and why other runs were left out."""


def serve(runs: str | Path, announce: Announce, *, host: str = "127.0.0.1", port: int) -> None:
    """Bring MLflow to what the journals say, serve it, announce the links, wait for Ctrl-C.

    Args:
        runs: folder of the runs.
        announce: called once the server is up.
        host, port: as ``Server`` takes them.

    Raises:
        InputError: no such folder, or nothing can listen there.
        AutocompressError: the server does not start.
    """
    recorders, skipped = sync_all(runs)
    with Server(runs, host, port) as server:
        pages = {name: links_of(server.url, found) for name, found in recorders.items()}
        announce(server.url, pages, skipped)
        # a plain kill must end the server too, not leave it behind
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            code = server.wait()
            raise AutocompressError(f"MLflow's server ended with code {code}:\n{server.log()}")


def sync_all(runs: str | Path) -> tuple[dict[str, Recorder], dict[str, str]]:
    """Synchronize every run of a folder into its store.

    Returns:
        What was written, and why the rest was left out, by the run's name.
    """
    done: dict[str, Recorder] = {}
    skipped: dict[str, str] = {}
    for folder in RunFolder.all(runs):
        try:
            folder.check_plain()
            writer = writer_of(folder)
            if writer is not None:  # only that process logs, or trials would be there twice
                told = f"process {writer} is writing it and shows its trials itself."
                skipped[folder.name] = told
                continue
            done[folder.name] = sync(folder, uri=Store.beside(runs).uri)
        except Exception as error:  # one bad run must not hide the others
            skipped[folder.name] = str(error)
    return done, skipped
