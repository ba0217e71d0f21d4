"""The same on a real PostgreSQL server, which the test starts on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_shared_trials import run_drivers

pytest.importorskip("psycopg", reason="needs psycopg (extra dev)")

_PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if _PROGRAMS is None:
        pytest.skip("PostgreSQL is not installed (the distribution's package `postgresql`)")
    folder = tmp_path_factory.mktemp("postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # it refuses to run as root
    become = ["runuser", "-u", "postgres", "--"] if Path("/root").owner() == "root" else []
    become = become if subprocess.run(["id", "-u"], capture_output=True).stdout == b"0\n" else []
    if become:
        shutil.chown(folder, "postgres")
        for parent in (folder, *folder.parents):
            if parent == Path("/tmp"):
                break
            parent.chmod(0o755)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    data, log = str(folder / "data"), str(folder / "log")
    subprocess.run([*become, _PROGRAMS / "initdb", "-D", data, "-A", "trust"], check=True)
    begin = [*become, _PROGRAMS / "pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "start"]
    subprocess.run(begin, check=True, stdout=subprocess.DEVNULL)
    user = "postgres" if become else subprocess.getoutput("id -un")
    try:
        yield f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"
    finally:
        end = [*become, _PROGRAMS / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
        subprocess.run(end, check=True, stdout=subprocess.DEVNULL)


def test_drivers_share_a_database_server(postgres: str) -> None:
    evaluated = run_drivers(postgres, 3)
    assert evaluated
    assert max(Counter(evaluated).values()) == 1
