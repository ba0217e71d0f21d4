"""Starts Flower for a study: a simulation on this machine, or a run on a SuperLink."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from autocompress.federated.study import Simulated, federation_of
from autocompress.flower.environment import federated_python
from autocompress.flower.relay import Relayed, relayed
from autocompress.machine.facts import cores_to_use
from autocompress.machine.scratch import scratch_folder

if TYPE_CHECKING:
    from autocompress.run.study import StudyConfig

STUDY = "AUTOCOMPRESS_FEDERATED_STUDY"
"""Names the study of a simulation, for all of its clients."""
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_APP = """[project]
name = "autocompress-federated"
version = "0.1.0"
description = "Carries the messages of a federated study"
license = {text = "Apache-2.0"}
dependencies = []

[tool.flwr.app]
publisher = "autocompress"

[tool.flwr.app.components]
serverapp = "autocompress.flower.server_app:app"
clientapp = "autocompress.flower.client_app:app"

[tool.flwr.app.config]
place = ""
"""
_LOCAL = ("127.0.0.1", "localhost", "[::1]")


@contextmanager
def simulation(simulated: Simulated, log: Path) -> Iterator[Relayed]:
    """Reaches clients that share out a study's data on this machine.

    Args:
        simulated: all of them.
        log: file for what Flower prints.

    Raises:
        InputError: the environment with Flower is missing, or the rule does not fit the data.
        FlowerFailed: the simulation does not come up.
    """
    python, count, study = federated_python(), simulated.count, simulated.study
    with scratch_folder("study") as folder:
        path = folder / f"{study.name}.yaml"
        path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
        cores = str(min(count, cores_to_use()))
        command = [str(python), "-m", "autocompress.flower.simulate"]
        command += ["--clients", str(count), "--cpus", cores]
        with _relayed(command, study, log, {STUDY: str(path)}, count) as transport:
            yield transport


@contextmanager
def superlink(study: StudyConfig, name: str, log: Path) -> Iterator[Relayed]:
    """Reaches the SuperNodes of a SuperLink, which runs on this machine.

    Args:
        study: of the server; its data are not read.
        name: of a connection in Flower's own configuration, which knows certificates; or the
            address ``127.0.0.1:PORT`` of one without them.
        log: file for what Flower prints.

    Raises:
        InputError, FlowerFailed: as for ``simulation``.
    """
    python = federated_python()
    with scratch_folder("study") as folder:
        (folder / "pyproject.toml").write_text(_APP, encoding="utf-8")
        more: dict[str, str] = {}
        if name.rpartition(":")[0] in _LOCAL:
            home = folder / "flwr"
            home.mkdir()
            text = f'[superlink.study]\naddress = "{name}"\ninsecure = true\n'
            (home / "config.toml").write_text(text, encoding="utf-8")
            name, more = "study", {"FLWR_HOME": str(home)}
        program = str(python.with_name("flwr"))
        command = [program, "run", str(folder), name, "--run-config", 'place="{place}"']
        expected = federation_of(study).clients
        with _relayed(command, study, log, more, expected) as transport:
            yield transport


@contextmanager
def _relayed(
    command: Sequence[str], study: StudyConfig, log: Path, more: dict[str, str], expected: int
) -> Iterator[Relayed]:
    """With the programs of Flower's environment before all others, which it starts by name."""
    folder = str(Path(command[0]).parent)
    variables = {**_QUIET, **more, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    seconds = federation_of(study).timeout_s
    with relayed(command, log, ttl_s=seconds, expected=expected, variables=variables) as transport:
        yield transport
