"""One contract for every executor: in this process, in a pool of processes, through Ray."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
from analytic import AnalyticEvaluator, AnalyticFactory, jobs, numbered

from autocompress.controller.protocols import Executor, Job, Outcome
from autocompress.errors import InputError
from autocompress.execute import make_executor, pool
from autocompress.execute.local import InProcessExecutor
from autocompress.execute.pool import ProcessPoolExecutor
from autocompress.execute.timing import TimingExecutor
from autocompress.machine.facts import usable_cores
from autocompress.results.trial import SEARCH

KINDS = ["local", "pool", "ray", "ray_tune"]
WORKERS = KINDS[1:]
Make = Callable[..., Executor]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Builds an executor of a kind; closed at the end whatever happens."""
    made: list[Executor] = []

    def build(kind: str, violent: str = "", workers: int = 2, share: float = 0.5) -> Executor:
        if kind.startswith("ray"):
            request.getfixturevalue("ray_offline")
        factory = AnalyticFactory(str(tmp_path), violent, share)
        evaluator = AnalyticEvaluator(violent=violent, share=share)
        if kind == "pool":  # asked for one worker, `make_executor` would take this process
            made.append(TimingExecutor(ProcessPoolExecutor(factory, workers), evaluator))
        else:
            workers = 1 if kind == "local" else workers
            made.append(make_executor(kind, workers, evaluator, factory))
        return made[-1]

    yield build
    for executor in made:
        executor.close(cancel=True)


def collect(executor: Executor, todo: list[Job], limit_s: float = 90.0) -> dict[int, Outcome]:
    """Keep all slots busy until every job is answered."""
    queue, found, running = list(todo), {}, 0
    end = time.monotonic() + limit_s
    while queue or running:
        while queue and running < executor.slots:
            executor.submit(queue.pop(0))
            running += 1
        outcome = executor.wait(1.0)
        assert time.monotonic() < end, f"{len(found)} of {len(todo)} answered"
        if outcome is not None:
            assert outcome.job.number not in found
            found[outcome.job.number] = outcome
            running -= 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_same_outcomes_and_one_evaluator_per_worker(kind: str, make: Make, tmp_path: Path) -> None:
    todo = jobs(8)
    found = collect(make(kind), todo)
    here = AnalyticEvaluator()
    for job in todo:
        outcome = found[job.number]
        expected = here.evaluate(job.policy, SEARCH, 0)
        assert (outcome.job, outcome.error) == (job, "")
        assert outcome.measurement is not None
        assert dict(outcome.measurement.values) == dict(expected.values)
        assert outcome.seconds >= 0
    built = list(tmp_path.iterdir())
    processes = {p.name.split("-")[0] for p in built}
    assert len(built) == len(processes)
    assert len(built) <= (0 if kind == "local" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_relative_paths_start_where_the_study_did(
    kind: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of later jobs: Ray Tune moves an actor into another folder for each."""
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path)
    found = collect(make(kind, "astray"), jobs(6))
    assert [o.error for o in found.values()] == [""] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_told_apart(kind: str, make: Make) -> None:
    found = collect(make(kind, "full"), jobs(6))
    full = [outcome.full for outcome in found.values() if outcome.error]
    assert full
    assert all(error is not None and error.errno == errno.ENOSPC for error in full)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_is_an_outcome(kind: str, make: Make) -> None:
    todo = jobs(6)
    found = collect(make(kind, "crash"), todo)
    bad = {n for n, o in found.items() if o.error}
    assert bad == {j.number for j in todo if int(j.policy.untrained_digest[:8], 16) < 2**31}
    assert 0 < len(bad) < len(todo)
    for number, outcome in found.items():
        assert (outcome.measurement is None) == (number in bad)
        if number in bad:
            assert "a crash, on purpose" in outcome.error


@pytest.mark.parametrize("kind", ["local", "pool"])
def test_a_value_that_is_not_finite_is_an_error(kind: str, make: Make) -> None:
    (outcome,) = collect(make(kind, "nan", share=1.1), jobs(1)).values()
    assert outcome.measurement is None
    assert "must be a finite number" in outcome.error


@pytest.mark.parametrize("kind", WORKERS)
def test_a_worker_that_dies_costs_one_job(kind: str, make: Make) -> None:
    """The job that was under way comes back with an error, and later ones still run."""
    deadly = [j for j in jobs(40) if int(j.policy.untrained_digest[:8], 16) < 2**31]
    harmless = [j for j in jobs(40) if int(j.policy.untrained_digest[:8], 16) > 2**31]
    executor = make(kind, "exit", workers=1)
    todo = [harmless[0], deadly[0], harmless[1], harmless[2]]
    found = collect(executor, todo)
    assert [bool(found[j.number].error) for j in todo] == [False, True, False, False]
    assert "died" in found[deadly[0].number].error


def _forked(process: psutil.Process) -> bool:
    return "forkserver" in " ".join(process.cmdline()) and process.ppid() != os.getpid()


def _spawned(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(process.cmdline())


def test_workers_that_die_while_they_have_nothing_to_do_cost_nothing(make: Make) -> None:
    executor = make("pool")
    first, *later = jobs(5)
    collect(executor, [first])
    idle = [p for p in psutil.Process().children(recursive=True) if _forked(p) or _spawned(p)]
    assert len(idle) == 2
    for process in idle:
        process.kill()
    # not waited for: that would take their exit codes from the pool
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in idle):
        time.sleep(0.05)
    found = collect(executor, later)
    assert [found[job.number].error for job in later] == [""] * len(later)


def test_a_worker_that_dies_while_it_is_set_up_costs_nothing(make: Make, tmp_path: Path) -> None:
    """A machine that is short of memory for a moment."""
    executor = make("pool", "exit in set-up")
    found = collect(executor, jobs(6))
    assert [o.error for o in found.values()] == [""] * 6
    assert (tmp_path / "died").exists()


def test_workers_that_always_die_in_set_up_fail_every_job(make: Make) -> None:
    found = collect(make("pool", "never set up"), jobs(3))
    assert ["died" in o.error for o in found.values()] == [True] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_end_with_the_process_that_they_are_forked_from(make: Make) -> None:
    """It may be killed, too; new workers come from another one."""
    executor = make("pool")
    first, *later = jobs(4)
    collect(executor, [first])
    workers = [p for p in psutil.Process().children(recursive=True) if _forked(p)]
    (server,) = {worker.parent() for worker in workers}
    assert server is not None
    server.kill()
    assert psutil.wait_procs(workers, timeout=5.0)[1] == []
    found = collect(executor, later)
    assert [found[job.number].error for job in later] == [""] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_no_thread_runs_where_workers_are_forked() -> None:
    """A fork would leave it dead; OpenBLAS, which has its own handler for that, is kept to one."""
    code = "import os, autocompress.execute.imports; print(len(os.listdir('/proc/self/task')))"
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=alone, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_modules_of_the_folder_that_one_is_in_are_not_taken(tmp_path: Path) -> None:
    """Where the program itself does not look there, as the command line does not."""
    for name in ("profile", "statistics"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a stranger was run')\n")
    code = (
        "import sys; from autocompress.execute.pool import ProcessPoolExecutor;"
        "from analytic import AnalyticFactory, jobs; executor = ProcessPoolExecutor("
        "AnalyticFactory(sys.argv[1]), 1); executor.submit(jobs(1)[0]);"
        "outcome = executor.wait(60.0); print(outcome.error or 'scored'); executor.close()"
    )
    (tmp_path / "left").mkdir()
    beside = str(Path(__file__).parent.parent / "controller")
    found = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "left")],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{beside}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout.strip() == "scored", found.stderr
    assert "a stranger was run" not in found.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_the_cores(make: Make, workers: int) -> None:
    """Each keeps its part of them busy, and one alone keeps all."""
    found = collect(make("pool", "cores", workers=workers), jobs(2))
    share = max(1, usable_cores() // workers)
    assert [o.error for o in found.values()] == ["", ""]
    assert [o.measurement["params"] for o in found.values() if o.measurement] == [share] * 2


def test_workers_see_the_environment_of_the_moment(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the first study of this process."""
    collect(make("pool"), jobs(1))
    monkeypatch.setenv("AUTOCOMPRESS_OF_THE_MOMENT", "set")
    found = collect(make("pool", "environment"), jobs(2))
    assert [o.error for o in found.values()] == ["", ""]


def test_a_job_that_got_lost_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the pool and its worker, where no limit of the worker's holds."""
    executor = ProcessPoolExecutor(AnalyticFactory(str(tmp_path)), 1)
    monkeypatch.setattr(executor._pool, "schedule", lambda *args, **more: Future())
    first, second = (numbered(job, job.number, limit_s=60.0 * i) for i, job in enumerate(jobs(2)))
    executor.submit(first)
    monkeypatch.setattr(pool, "_SETUP_S", 0.2)
    outcome = executor.wait(0.5)
    assert outcome is not None
    assert "died" in outcome.error
    monkeypatch.setattr(pool, "_SETUP_S", 900.0)
    executor.submit(second)
    outcome = executor.wait(60.0)
    executor.close(cancel=True)
    assert outcome is not None
    assert outcome.scored is not None


def test_a_job_that_was_on_its_way_to_a_pool_that_broke_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool tells of jobs that it has registered alone."""
    executor = ProcessPoolExecutor(AnalyticFactory(str(tmp_path)), 1)
    monkeypatch.setattr(executor._pool, "schedule", lambda *args, **more: Future())
    executor.submit(jobs(1)[0])
    executor._pool.stop()
    outcomes = (executor.wait(5.0) for _ in range(12))
    outcome = next(filter(None, outcomes), None)
    executor.close(cancel=True)
    assert outcome is not None
    assert (outcome.error, outcome.scored is None) == ("", False)


@pytest.mark.parametrize("kind", WORKERS)
def test_a_worker_that_hangs_costs_one_job(kind: str, make: Make) -> None:
    """Its limit is the job's own; the worker, or another one in its place, goes on."""
    hanging = [j for j in jobs(40) if int(j.policy.untrained_digest[:8], 16) < 2**31]
    harmless = [j for j in jobs(40) if int(j.policy.untrained_digest[:8], 16) > 2**31]
    executor = make(kind, "hang for ever", workers=1)
    todo = [harmless[0], numbered(hanging[0], hanging[0].number, limit_s=1.0), harmless[1]]
    found = collect(executor, todo)
    assert [bool(found[j.number].error) for j in todo] == [False, True, False]
    assert "took longer than 1 s" in found[hanging[0].number].error


@pytest.mark.parametrize("kind", WORKERS)
def test_what_code_prints_in_a_worker_is_no_answer(
    kind: str, make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    collect(make(kind, "print", workers=1, share=1.1), jobs(1))
    assert "printed on purpose" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_wait_for_is_no_outcome(kind: str, make: Make) -> None:
    executor = make(kind)
    assert executor.wait(0.05) is None


@pytest.mark.parametrize("kind", ["pool", "ray", pytest.param("ray_tune", marks=pytest.mark.slow)])
def test_cancel_does_not_wait_for_running_jobs(kind: str, make: Make) -> None:
    executor = make(kind, "hang", workers=1, share=1.1)
    collect(executor, jobs(1))  # the worker is up
    for job in jobs(30)[1:]:  # half a second each
        executor.submit(job)
    start = time.monotonic()
    executor.close(cancel=True)
    assert time.monotonic() - start < 10


def test_a_factory_that_fails_is_an_outcome(tmp_path: Path) -> None:
    executor = ProcessPoolExecutor(AnalyticFactory(str(tmp_path / "missing")), 1)
    executor.submit(jobs(1)[0])
    outcome = executor.wait(60)
    executor.close()
    assert outcome is not None
    assert "the worker could not be set up" in outcome.error
    assert "FileNotFoundError" in outcome.error


def test_kinds_by_name() -> None:
    evaluator = AnalyticEvaluator()
    factory = AnalyticFactory("")
    assert isinstance(make_executor("local", 1, evaluator, factory), InProcessExecutor)
    with pytest.raises(InputError, match="local, ray or ray_tune"):
        make_executor("dask", 1, evaluator, factory)
    assert math.isfinite(evaluator.baseline["accuracy"])
