"""Score through Ray Tune, here or on a cluster.

The one loop of the search stays in charge. Its jobs wait in a queue from which a ``Searcher`` of
ours feeds Tune; results come back the same way. Actors are reused, so that each builds its
evaluator once.
"""

from __future__ import annotations

import os
import pickle
import queue
import shutil
import threading
import traceback
from collections.abc import Callable
from typing import Any

from autocompress.controller.protocols import DividedEvaluator, Job, Outcome
from autocompress.execute.cluster import connect
from autocompress.execute.worker import died, print_to_stderr, score
from autocompress.machine.scratch import make_scratch

_POLL_S = 0.1


class RayTuneExecutor:
    """Runs jobs as Tune trials.

    Args:
        factory: picklable; builds the evaluator in an actor.
        workers: trials at once.
        address: of a running cluster; ``None`` starts Ray on this machine, offline.
        cpus, gpus: reserved for each actor; the machine's cores shared out by default.
    """

    away = False

    def __init__(
        self,
        factory: Callable[[], DividedEvaluator],
        workers: int,
        *,
        address: str | None = None,
        cpus: float | None = None,
        gpus: float = 0.0,
    ) -> None:
        self._disconnect = connect(address)
        self.slots = workers
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._failure = ""
        self._waiting: dict[int, Job] = {}
        share = cpus or max(0.1, (os.cpu_count() or 1) / workers)
        self._folder = make_scratch("ray")
        self._thread = threading.Thread(
            target=self._tune,
            args=(pickle.dumps(factory), {"cpu": share, "gpu": gpus}),
            name="ray-tune",
            daemon=True,
        )
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job for Tune's next question."""
        self._waiting[job.number] = job
        self._jobs.put(job)

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The next finished job; if Tune itself failed, its error for every waiting job."""
        try:
            outcome = self._outcomes.get(timeout=timeout)
        except queue.Empty:
            if self._thread.is_alive() or not self._waiting:
                return None
            job = next(iter(self._waiting.values()))
            outcome = Outcome(job, None, self._failure or "Ray Tune ended")
        self._waiting.pop(outcome.job.number, None)
        return outcome

    def close(self, *, cancel: bool = False) -> None:
        """Let Tune end, and Ray with it if it was started here; with ``cancel``, drop the queue."""
        while cancel and not self._jobs.empty():
            self._jobs.get()
        self._jobs.put(None)
        if cancel:
            self._disconnect()  # which ends what Tune waits for
        self._thread.join(timeout=60)
        self._disconnect()
        shutil.rmtree(self._folder, ignore_errors=True)  # a cancelled Tune may still write

    def _tune(self, factory: bytes, resources: dict[str, float]) -> None:
        from ray import tune

        try:
            trainable = tune.with_resources(_trainable(factory), resources)
            tune.run(
                trainable,
                search_alg=_searcher(self._jobs, self._outcomes),
                num_samples=-1,
                max_concurrent_trials=self.slots,
                reuse_actors=True,
                verbose=0,
                storage_path=str(self._folder),
                raise_on_failed_trial=False,
                checkpoint_config=None,
                callbacks=[],
                log_to_file=False,
            )
        except Exception:
            self._failure = traceback.format_exc(limit=6)


def _trainable(factory: bytes) -> Any:
    """A Tune trainable that evaluates the job in its config, once per trial.

    Tune moves actors into folders of their trials; a study's paths are relative to where it was
    started, so jobs run there (on a cluster too, whose machines share that folder).
    """
    from ray import tune

    home = os.getcwd()

    class Evaluation(tune.Trainable):  # type: ignore[misc, name-defined, unused-ignore]  # Ray is untyped
        def setup(self, config: dict[str, Any]) -> None:
            print_to_stderr()
            self.job = pickle.loads(config["job"])

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.job = pickle.loads(new_config["job"])
            return True

        def step(self) -> dict[str, Any]:
            if os.path.isdir(home):
                os.chdir(home)
            return {"outcome": pickle.dumps(score(factory, self.job)), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing to keep: a trial is one step, and the journal has its result."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing was kept."""

    return Evaluation


def _searcher(jobs: queue.SimpleQueue[Job | None], outcomes: queue.SimpleQueue[Outcome]) -> Any:
    """The Searcher between Tune and the study's own controller."""
    from ray.tune.search import Searcher

    class QueueSearcher(Searcher):  # type: ignore[misc, unused-ignore]  # Ray is untyped
        def __init__(self) -> None:
            super().__init__(metric="outcome", mode="max")
            self.running: dict[str, Job] = {}

        def suggest(self, trial_id: str) -> Any:
            try:
                job = jobs.get(timeout=_POLL_S)
            except queue.Empty:
                return None  # nothing to do yet: Tune asks again
            if job is None:
                return Searcher.FINISHED
            self.running[trial_id] = job
            return {"job": pickle.dumps(job)}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            job = self.running.pop(trial_id, None)
            if job is None:
                return
            if error or not result or "outcome" not in result:
                outcomes.put(died(job))
            else:
                outcomes.put(pickle.loads(result["outcome"]))

        def save(self, checkpoint_path: str) -> None:
            """Nothing to keep: the study's journal is what a resumed run starts from."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing was kept."""

    return QueueSearcher()
