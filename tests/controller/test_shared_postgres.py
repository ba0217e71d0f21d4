"""The same on a real PostgreSQL server, which the test starts on loopback."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_shared_trials import run_drivers

pytest.importorskip("psycopg", reason="needs psycopg (extra dev)")

_PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture
def postgres() -> Iterator[str]:
    if _PROGRAMS is None:
        pytest.skip("PostgreSQL is not installed (the distribution's package `postgresql`)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = os.getuid() == 0
    user = "postgres" if root else getpass.getuser()
    become = ["runuser", "-u", user, "--"] if root else []  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="autocompress-postgres-") as folder:
        if root:
            shutil.chown(folder, user)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        control = [*become, str(_PROGRAMS / "pg_ctl"), "-D", f"{folder}/data", "-w"]
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([*control, "init", "-o", "-A trust"], **quiet)
        subprocess.run([*control, "-o", options, "-l", f"{folder}/log", "start"], **quiet)
        try:
            yield f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


def test_drivers_share_a_database_server(postgres: str) -> None:
    evaluated = run_drivers(postgres, 3)
    assert evaluated
    assert max(Counter(evaluated).values()) == 1
