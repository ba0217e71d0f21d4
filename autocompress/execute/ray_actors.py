"""Score through actors of Ray, here or on a cluster."""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocompress.controller.protocols import DividedEvaluator, Job, Outcome
from autocompress.execute.cluster import connect
from autocompress.execute.local import failed
from autocompress.execute.worker import died, prepare, print_to_stderr, score

_PLACE_S = 300.0
"""How long a job waits for a machine that has room for an actor."""


class RayExecutor:
    """Runs each job in an actor; an actor that dies fails its job and is replaced.

    Where its machine is gone the replacement waits for room elsewhere, and the others go on. Files
    that an actor on another machine wrote come back with its answer.

    Args:
        factory: picklable; builds the evaluator in an actor. It is put into the cluster's store
            once, for all of its machines.
        workers: actors.
        address: of a running cluster; ``None`` starts Ray on this machine.
        cpus: reserved for each actor; this machine's cores shared out by default.
        gpus: reserved for each actor.
    """

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
        import ray

        self.slots = workers
        self._factory = ray.put(pickle.dumps(factory))
        self._here = ray.get_runtime_context().get_node_id()
        share = cpus or max(0.1, (os.cpu_count() or 1) / workers)
        self._actor = ray.remote(num_cpus=share, num_gpus=gpus, max_restarts=0)(_Worker)
        self._queue: deque[Job] = deque()
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Job, Any]] = {}
        self._nodes: dict[Any, str] = {}
        self._waiting_since = time.monotonic()
        for _ in range(workers):
            self._start()

    def _start(self) -> None:
        actor = self._actor.remote(self._factory, os.getcwd(), self._here)
        self._starting[actor.node.remote()] = actor

    @property
    def away(self) -> bool:
        """Whether no actor computes on this machine."""
        return self._here not in self._nodes.values()

    def submit(self, job: Job) -> None:
        """Hand a job to an actor that has none, or to the next that gets ready."""
        self._queue.append(job)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            actor, job = self._idle.pop(), self._queue.popleft()
            self._running[actor.score.remote(job)] = (job, actor)
        if not self._queue or self._running:
            self._waiting_since = time.monotonic()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The next finished job."""
        import ray

        end = None if timeout is None else time.monotonic() + timeout
        while self._running or self._queue:
            left = None if end is None else max(0.0, end - time.monotonic())
            pending = [*self._running, *self._starting]
            ready, _ = ray.wait(
                pending, num_returns=1, timeout=min(1.0, 1.0 if left is None else left)
            )
            if ready and ready[0] in self._running:
                return self._answer(ready[0])
            if ready:
                self._started(ready[0])
            elif self._queue and time.monotonic() - self._waiting_since > _PLACE_S:
                job = self._queue.popleft()
                return Outcome(job, None, "no machine of the Ray cluster had room for its actor")
            if not ready and left == 0.0:
                return None
        return None

    def _started(self, ready: Any) -> None:
        import ray

        actor = self._starting.pop(ready)
        try:
            self._nodes[actor] = ray.get(ready)
        except ray.exceptions.RayError:
            self._start()  # its machine went away meanwhile
            return
        self._idle.append(actor)
        self._hand_out()

    def _answer(self, ready: Any) -> Outcome:
        import ray

        job, actor = self._running.pop(ready)
        try:
            text, files = ray.get(ready)
            outcome: Outcome = pickle.loads(text)
            for name, content in files.items():
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content)
        except ray.exceptions.RayActorError:
            self._nodes.pop(actor, None)
            self._start()
            outcome = died(job)
        except Exception as error:
            self._idle.append(actor)
            outcome = failed(job, error)
        else:
            self._idle.append(actor)
        self._hand_out()
        return outcome

    def close(self, *, cancel: bool = False) -> None:
        """End the actors, and Ray with them if it was started here."""
        import ray

        while self._running and not cancel:
            self.wait()
        busy = [actor for _, actor in self._running.values()]
        for actor in (*self._idle, *self._starting.values(), *busy):
            ray.kill(actor)
        self._idle, self._running, self._starting = [], {}, {}
        self._disconnect()


class _Worker:
    """An actor. It works where the study was started, where its machine has that folder."""

    def __init__(self, factory: bytes, home: str, driver: str) -> None:
        self._factory, self._driver = factory, driver
        print_to_stderr()
        if os.path.isdir(home):
            os.chdir(home)

    def node(self) -> str:
        """The machine that it was placed on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def score(self, job: Job) -> tuple[bytes, dict[str, bytes]]:
        """A pickled outcome, and the files that the driver's machine does not have."""
        outcome = score(self._factory, job)
        files = {}
        if outcome.scored is not None and self.node() != self._driver:
            written = prepare(self._factory).files(job.policy, job.phase, job.seed)
            files = {str(path): path.read_bytes() for path in written if path.is_file()}
        return pickle.dumps(outcome), files
