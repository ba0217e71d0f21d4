"""Federated studies through Flower itself: a simulation, and clients of a SuperLink."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import STUDY

from autocompress.errors import InputError
from autocompress.federated.study import Simulated, run_federated
from autocompress.flower import environment, start
from autocompress.flower.relay import FlowerFailed, relayed
from autocompress.run.study import read_study

needs_flower = pytest.mark.federated


@pytest.fixture
def python() -> Path:
    try:
        return environment.federated_python()
    except InputError as error:
        pytest.skip(str(error))  # which names `make federated-env`


def tiny(**federation: Any) -> dict[str, Any]:
    search = {**STUDY["search"], "trials": 2, "random_references": 0}
    federation = {"clients": 3, "split": "dirichlet", "alpha": 0.5, **federation}
    more = {"search": search, "tracking": {"mlflow": False}, "federation": federation}
    return {**STUDY, **more, "target": {"runtime": "onnxruntime"}}


@needs_flower
@pytest.mark.timeout(900)
def test_a_simulation_answers_the_command(python: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    command = [sys.executable, "-m", "autocompress", "federate", "tiny.yaml", "--json"]
    variables = {**os.environ, "AUTOCOMPRESS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["answered"]
    kinds = found["federated"]["kinds"]
    assert {"describe", "moments", "evaluate", "recover"} <= set(kinds)
    assert kinds["moments"]["received_bytes"] > 0
    assert found["federated"]["left_out"] == {}
    lines = (tmp_path / "runs" / "tiny" / "federated" / "rounds.jsonl").read_text().splitlines()
    assert all(json.loads(line)["clients"] == [0, 1, 2] for line in lines)


@contextmanager
def running(command: list[str], log: Path, variables: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=variables, stdin=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def answers(port: int, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as found:
            if found.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.2)
    return False


@needs_flower
@pytest.mark.timeout(900)
def test_a_superlink_reaches_clients_of_their_own(python: Path, tmp_path: Path) -> None:
    """Two SuperNodes, each with a study of its own; the server reads no data."""
    plain = read_study(tiny(clients=2, split="iid"))
    model = Simulated(plain).parts.model
    variables = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
    variables["PATH"] = f"{python.parent}{os.pathsep}{variables['PATH']}"
    port = free_port()
    link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    with ExitStack() as stack:
        command = [*link, "--port", str(port)]
        stack.enter_context(running(command, tmp_path / "link.log", variables))
        assert answers(port), (tmp_path / "link.log").read_text()[-3000:]
        for number in range(2):
            own = tmp_path / f"client{number}.yaml"
            own.write_text(yaml.safe_dump(tiny(clients=2)))
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            node += ["--port", str(free_port())]
            node += ["--node-config", f'partition-id={number} study="{own}"']
            stack.enter_context(running(node, tmp_path / f"node{number}.log", variables))
        with start.superlink(plain, f"127.0.0.1:{port}", tmp_path / "flower.log") as transport:
            assert transport.clients() == [0, 1]
            done = run_federated(plain, transport, tmp_path / "run", model=model)
    assert done.summary["answered"]
    assert done.summary["federated"]["left_out"] == {}


def test_without_the_environment_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "python"))
    with pytest.raises(InputError, match="make federated-env"):
        environment.federated_python()
    # a Python without Flower
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    with pytest.raises(InputError, match=r"No module named 'flwr'.*make federated-env"):
        environment.federated_python()


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"]
    log = tmp_path / "log"
    with (
        pytest.raises(FlowerFailed, match=r"ended with code 3.*no such thing"),
        relayed(command, log, ttl_s=1.0),
    ):
        pass


def test_messages_pass_through_the_connection(tmp_path: Path) -> None:
    """A process in place of Flower's, which answers as its ServerApp would."""
    program = """
import json, os
from multiprocessing.connection import Client
from pathlib import Path
place = Path(os.environ["AUTOCOMPRESS_FEDERATED_PLACE"])
with Client(str(place / "socket"), authkey=(place / "key").read_bytes()) as study:
    while True:
        head = json.loads(study.recv_bytes())
        if head["do"] == "close":
            break
        if head["do"] == "clients":
            study.send_bytes(json.dumps({"clients": [4, 7]}).encode())
            continue
        message = study.recv_bytes()
        if head["client"] == 7:
            told = {"client": 7, "key": head["key"], "error": "it has left"}
            study.send_bytes(json.dumps(told).encode())
        else:
            study.send_bytes(json.dumps({"client": 4}).encode())
            study.send_bytes(message[::-1])
"""
    from autocompress.federated.messages import Unanswered, pack

    message = pack({"kind": "count", "key": "k"}, {})
    with relayed([sys.executable, "-c", program], tmp_path / "log", ttl_s=1.0) as transport:
        assert transport.clients() == [4, 7]
        transport.push(4, message)
        transport.push(7, message)
        found = dict([transport.pull(30.0) or (0, ""), transport.pull(30.0) or (0, "")])
    assert found == {4: message[::-1], 7: Unanswered("k", "it has left")}
