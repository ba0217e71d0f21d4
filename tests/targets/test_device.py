"""Files on a device that ``ssh`` reaches: this machine's loopback, through a server of the test's.

Times are those of this machine either way, so that what comes back can be compared with it.
"""

from __future__ import annotations

import getpass
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from devices import LoopbackDevice, other_python, there

from autocompress.errors import DeviceLost, InputError, MeasurementError, TargetUnavailable
from autocompress.execute.limit import time_limit
from autocompress.measure.extras import ExtraCosts
from autocompress.measure.gate import inspect_file
from autocompress.measure.latency import paired_timing
from autocompress.measure.memory import peak_memory_bytes
from autocompress.measure.sampling import Plan
from autocompress.targets import get_target
from autocompress.targets.base import random_inputs
from autocompress.targets.onnx_runtime import device_at
from autocompress.testing.target import TargetContract

pytestmark = pytest.mark.usefixtures("own_keys")
_SHORT = Plan(min_rounds=6, max_seconds=0.3, slot_ms=1.0)


class TestDevice(TargetContract):
    """All that any target keeps to: quality is judged here, profiles and times come from there."""

    config: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _on_the_board(self, board: LoopbackDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"runtime": "onnxruntime", "device": board.url, "python": sys.executable}
        monkeypatch.setattr(type(self), "config", config)


def test_times_memory_and_kernels_come_from_there(
    board: LoopbackDevice, exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, file = there(board, threads=2), exported[".onnx"]
    told = target.describe()
    assert told["device"] == board.url
    assert told["threads"] == 2
    assert told["version"] == told["quality_version"] == onnxruntime.__version__
    assert {"name", "cpu", "cores"} <= set(told["machine"])
    assert target.machine_id() != get_target("onnxruntime").machine_id()
    # nothing of ours runs a file here from now on, but to judge its quality
    for name in ("measure.latency.take", "measure.latency.timing_lock"):
        monkeypatch.setattr(f"autocompress.{name}", None)
    timing = paired_timing(target, file, file, plan=_SHORT)
    assert timing.latency_ms > 0
    assert timing.ratio == pytest.approx(1, abs=0.2)
    assert timing.rounds >= 6
    assert timing.facts["machine"] == told["machine"]
    assert timing.facts["target"] == told
    assert {"load_before", "state_before", "state_after"} <= set(timing.facts)
    monkeypatch.setattr("autocompress.measure.memory.subprocess", None)
    grown = peak_memory_bytes(target, file)
    assert grown is None or grown > 0
    assert {"Conv"} <= set(inspect_file(target, file).profile.by_op())


def test_outputs_there_are_those_of_here(board: LoopbackDevice, exported: dict[str, Path]) -> None:
    target = there(board)
    assert target.elsewhere is not None
    with closing(target.open(exported[".onnx"])) as session:
        inputs = random_inputs(session.inputs)
        here = session.run(inputs)
    _, (found,) = target.elsewhere.ask("run", target.fields(), [exported[".onnx"]], arrays=inputs)
    np.testing.assert_allclose(found, here[0], rtol=1e-5)


@pytest.mark.timeout(120)
def test_another_machine_at_the_same_address_is_refused(
    board: LoopbackDevice, exported: dict[str, Path]
) -> None:
    """An address can be given to another board while the first one is away."""
    target, file = there(board), exported[".onnx"]
    device = target.elsewhere
    assert device is not None
    device.ask("look", target.fields(), [file])
    board.cut()
    assert device._hello is not None
    device._hello["machine"]["cpu"] = "of the board before"
    for _ in range(2):  # and stays refused; a study ends as where its device is lost
        with pytest.raises(
            TargetUnavailable, match=r"another machine .*'of the board before', now"
        ) as caught:
            device.ask("look", target.fields(), [file])
        assert isinstance(caught.value, DeviceLost)


def test_a_file_that_ends_the_program_there_costs_itself_alone(
    board: LoopbackDevice, exported: dict[str, Path], tmp_path: Path
) -> None:
    lines = "import os, onnxruntime\nclass Dead:\n    def __init__(self, *a, **k): os._exit(9)\n"
    python = other_python(tmp_path / "dead", lines + "onnxruntime.InferenceSession = Dead\n")
    target = there(board, python=str(python))
    with pytest.raises(MeasurementError, match=r"ended 3 times while it did this \(timings of"):
        paired_timing(target, exported[".onnx"], exported[".onnx"], plan=_SHORT)


def test_a_wrong_host_or_key_is_said_at_once(
    board: LoopbackDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = get_target({"device": "ssh://127.0.0.1:1"})
    with pytest.raises(TargetUnavailable, match=r"127\.0\.0\.1:1 cannot be reached: .*refused"):
        nobody.reach()
    config = (board.folder / "config").read_text().replace("/key\n", "/host\n")
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AUTOCOMPRESS_SSH", f"ssh -F {tmp_path / 'config'}")
    with pytest.raises(TargetUnavailable, match=r"Permission denied.*ssh-copy-id"):
        there(board).reach()
    monkeypatch.setenv("AUTOCOMPRESS_SSH", "no-such-ssh")
    device_at.cache_clear()
    with pytest.raises(TargetUnavailable, match="no program 'no-such-ssh'"):
        there(board).reach()


def test_a_device_without_numpy_and_onnxruntime_is_told_how(
    board: LoopbackDevice, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = bare / "bin" / "python"
    with pytest.raises(
        TargetUnavailable, match=r"has no numpy and no onnxruntime.*pip install numpy onnxruntime"
    ):
        there(board, python=str(python)).reach()


def test_a_python_that_is_not_there_is_told_apart_from_a_device_that_is_not(
    board: LoopbackDevice, tmp_path: Path
) -> None:
    plain = tmp_path / "no-program"
    plain.write_text("")
    for python in ("/no-such-python", str(plain)):
        with pytest.raises(
            TargetUnavailable, match=rf"cannot run files: {python} does not start.*another Python"
        ):
            there(board, python=python).reach()


def test_a_host_key_that_is_not_known_says_how_it_gets_so(
    board: LoopbackDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (board.folder / "config").read_text()
    strict = config.replace("accept-new", "yes").replace("/known\n", "/nothing\n")
    (tmp_path / "config").write_text(strict)
    monkeypatch.setenv("AUTOCOMPRESS_SSH", f"ssh -F {tmp_path / 'config'}")
    with pytest.raises(TargetUnavailable) as caught:
        there(board).reach()
    told = str(caught.value)
    assert "Host key verification failed. Its key" in told
    assert f"`ssh -p {board.port} {getpass.getuser()}@127.0.0.1`" in told
    assert f"ssh-keygen -R '[127.0.0.1]:{board.port}'" in told


def test_what_a_shell_prints_without_ending_the_line_is_passed_over(
    board: LoopbackDevice, exported: dict[str, Path], tmp_path: Path
) -> None:
    """A title for the terminal, say, which login files send whoever asks."""
    python = other_python(tmp_path / "chatty", "")
    script = python.read_text()
    python.write_text(script.replace("#!/bin/sh\n", "#!/bin/sh\nprintf 'Welcome\\nboard> '\n"))
    target = there(board, python=str(python))
    with time_limit(60.0, lambda: None):
        target.reach()
        assert paired_timing(target, exported[".onnx"], exported[".onnx"], plan=_SHORT).ratio > 0


def test_a_device_without_a_folder_for_files_says_so(board: LoopbackDevice, tmp_path: Path) -> None:
    python = other_python(tmp_path / "full", "import tempfile\ntempfile.tempdir = '/proc'\n")
    with pytest.raises(TargetUnavailable, match=r"takes no files in /proc .*make room.*TMPDIR"):
        there(board, python=str(python)).reach()


def test_a_device_of_another_runtime_version_is_said_and_recorded(
    board: LoopbackDevice, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = "import onnxruntime\nonnxruntime.__version__ = '1.0.0'\n"
    target = there(board, python=str(other_python(tmp_path / "old", lines)))
    target.reach()
    assert "has ONNX Runtime 1.0.0, and quality is judged here in" in caplog.text
    assert target.describe()["version"] == "1.0.0"
    assert target.describe()["quality_version"] == onnxruntime.__version__


def test_a_file_that_the_device_cannot_open_says_why(
    board: LoopbackDevice, exported: dict[str, Path]
) -> None:
    target = there(board, providers=["CUDAExecutionProvider"])
    with pytest.raises(TargetUnavailable, match=r"no CUDAExecutionProvider, only .*CPU"):
        target.reach()
    with pytest.raises(InputError, match=rf"On {board.url}: .*no CUDAExecutionProvider"):
        paired_timing(target, exported[".onnx"], exported[".onnx"], plan=_SHORT)


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=evil",
        "ssh://a b",
        "ssh://me@-host",
        "ssh://host:99999",
        "ssh://-l@host",
        "ssh://host;reboot",
        "ssh://",
    ],
)
def test_what_is_no_address_is_refused_before_ssh_sees_it(url: str) -> None:
    with pytest.raises(InputError, match="A device reads `ssh://user@host:port`"):
        get_target({"device": url})


@pytest.mark.parametrize("python", ["python3; reboot", "$(reboot)", "-c", "a b", ""])
def test_what_is_no_program_is_refused(python: str) -> None:
    with pytest.raises(InputError, match=r"`target\.python`"):
        get_target({"device": "ssh://host", "python": python})


def test_other_runtimes_say_that_they_cannot(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"only those of .runtime: onnxruntime"):
        get_target({"runtime": "torch", "device": "ssh://host"})
    with pytest.raises(InputError, match="not both"):
        get_target({"device": "ssh://host", "table": str(tmp_path / "table.json")})


def test_energy_is_that_which_the_device_tells(
    board: LoopbackDevice, exported: dict[str, Path], tmp_path: Path
) -> None:
    """Five watts all the time: what an inference takes of them is its seconds."""
    asked = frozenset(["energy_mj"])
    with pytest.raises(InputError, match=rf"cannot be limited on {board.url}.*no counters"):
        ExtraCosts(there(board), asked).refuse()
    python = other_python(tmp_path / "jetson", "")
    program = python.with_name("tegrastats")
    program.write_text("#!/bin/sh\nwhile true; do echo 'VDD_IN 5000mW/5000mW'; sleep 0.05; done\n")
    program.chmod(0o755)
    target = there(board, python=str(python))
    ExtraCosts(target, asked).refuse()
    file = exported[".onnx"]
    timing = paired_timing(target, file, file, plan=_SHORT)
    found = ExtraCosts(target, asked).after_timing(file, file, timing, timing.latency_ms)
    # on a busy machine all its seconds are longer than the quiet ones that a latency is
    assert 0.5 < found["energy_mj"] / (5.0 * timing.baseline_ms) < 30
