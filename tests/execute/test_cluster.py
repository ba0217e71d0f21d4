"""A real cluster of two raylets, one of which is killed in the middle of a study."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import STUDY, environment

from autocompress.errors import InputError
from autocompress.execute import cluster
from autocompress.track.journal import read_trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = found.add_node(num_cpus=1)
    yield found, other
    found.shutdown()


def test_a_study_goes_on_when_a_machine_is_lost(two_machines: Any, tmp_path: Path) -> None:
    machines, other = two_machines
    study = {**STUDY, "workers": 2, "executor": "ray", "recovery": {"epochs": 0}}
    study["search"] = {**STUDY["search"], "trials": 10}
    study["resources"] = {"cpus": 1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "autocompress", "search", "tiny.yaml"]
    run = tmp_path / "runs" / "tiny"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--ray-address", machines.address],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=log,
            stderr=log,
        )
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        if (run / "trials.jsonl").is_file() and len(read_trials(run)) >= 4:
            break
        time.sleep(0.2)
    assert process.poll() is None, (tmp_path / "log").read_text()
    machines.remove_node(other, allow_graceful=False)
    assert process.wait(400) == 0, (tmp_path / "log").read_text()
    trials = read_trials(run)
    ended = [t for t in trials if t.phase.kind == "search" and t.state in ("COMPLETE", "FAILED")]
    assert len(ended) >= 10
    failed = [t for t in ended if t.state == "FAILED"]
    assert len(failed) <= 2  # what the lost machine had
    assert all("died" in t.reason for t in failed)


def test_an_address_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="No Ray cluster at"):
            cluster.connect(address)


def test_a_cluster_of_ones_own_is_not_the_one_that_a_variable_names() -> None:
    """A variable or a file that a dead cluster left behind costs nothing."""
    code = (
        "from autocompress.execute.cluster import connect; import ray; "
        "end = connect(None); print(ray.get_runtime_context().gcs_address); end(); end(); "
        "assert not ray.is_initialized()"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = f"127.0.0.1:{silent.getsockname()[1]}"
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "RAY_ADDRESS": dead},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert found.stdout.strip().rpartition(":")[2].isdigit()
    assert found.stdout.strip() != dead
