"""What a study does while its device is away, full, at work for others or slow to connect."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from devices import LoopbackDevice, other_python, there
from tiny_study import until

from autocompress.controller.stop import stopping_on_interrupt
from autocompress.errors import DeviceLost, InputError
from autocompress.execute.limit import TookTooLong, time_limit
from autocompress.machine.device import WAIT_VARIABLE, Device
from autocompress.machine.waiting import asked_to_end, ends_within, outside_wait_s
from autocompress.measure.gate import inspect_file
from autocompress.measure.latency import paired_timing
from autocompress.measure.sampling import Plan
from autocompress.targets import get_target
from autocompress.targets.base import random_inputs
from autocompress.targets.onnx_runtime import device_at

pytestmark = pytest.mark.usefixtures("own_keys")
_SHORT = Plan(min_rounds=6, max_seconds=0.3, slot_ms=1.0)


@pytest.mark.timeout(120)
def test_a_request_whose_connection_is_cut_begins_anew(
    board: LoopbackDevice, exported: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of the rounds, and the device is away for seconds."""
    target, file = there(board), exported[".onnx"]
    target.reach()
    long = Plan(precision=1e-9, max_seconds=4.0, slot_ms=1.0)

    def pull() -> None:
        time.sleep(1.5)
        board.stop()
        time.sleep(3.0)
        board.start()

    pulling = threading.Thread(target=pull)
    pulling.start()
    with caplog.at_level(logging.INFO, "autocompress"):
        timing = paired_timing(target, file, file, plan=long)
    pulling.join()
    assert timing.latency_ms > 0
    said = [record.getMessage() for record in caplog.records]
    assert any("waiting for the device" in text and board.url in text for text in said)
    assert any("is there again" in text for text in said)


@pytest.mark.timeout(120)
def test_who_asks_a_study_to_end_waits_for_no_device(
    board: LoopbackDevice, exported: dict[str, Path]
) -> None:
    """The first Ctrl-C: no trial runs that could be finished."""
    target, file = there(board), exported[".onnx"]
    target.reach()
    board.stop()
    try:
        with stopping_on_interrupt() as stop:
            asking = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
            asking.start()
            with pytest.raises(DeviceLost, match=r"lost: .*--resume"):
                paired_timing(target, file, file, plan=_SHORT)
            asking.join()
        assert stop.asked
        assert not asked_to_end(), "the next study waits again"
    finally:
        board.start()


def test_a_device_that_stays_away_is_given_up(
    board: LoopbackDevice, exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, file = there(board), exported[".onnx"]
    target.reach()
    monkeypatch.setenv(WAIT_VARIABLE, "2")
    board.stop()
    try:
        begin = time.monotonic()
        with pytest.raises(DeviceLost, match=r"lost: .*stayed away for [2-4] s.*--resume"):
            paired_timing(target, file, file, plan=_SHORT)
        assert time.monotonic() - begin >= 2
        with pytest.raises(DeviceLost):  # a second time nothing is waited for
            paired_timing(target, file, file, plan=_SHORT)
    finally:
        board.start()
    assert paired_timing(target, file, file, plan=_SHORT).latency_ms > 0


def test_who_is_interrupted_while_it_connects_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a board that answers nothing, or whose login never ends."""
    connecting = tmp_path / "ssh"
    connecting.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    connecting.chmod(0o755)
    monkeypatch.setenv("AUTOCOMPRESS_SSH", str(connecting))
    with pytest.raises(TookTooLong), time_limit(2.0, lambda: None):
        get_target({"device": "ssh://board"}).reach()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


_FULL = """
import errno, os, pathlib
def write_bytes(self, data, write=pathlib.Path.write_bytes):
    if os.path.exists({mark!r}):
        with self.open("wb") as begun:
            begun.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(self, data)
pathlib.Path.write_bytes = write_bytes
"""


@pytest.mark.timeout(120)
def test_a_full_disk_is_waited_for(
    board: LoopbackDevice,
    exported: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = tmp_path / "full"
    full.write_text("")
    python = other_python(tmp_path / "board", _FULL.format(mark=str(full)))
    target, file = there(board, python=str(python)), exported[".onnx"]
    monkeypatch.setenv(WAIT_VARIABLE, "2")
    with pytest.raises(DeviceLost, match=r"No space left on device.*make room"):
        paired_timing(target, file, file, plan=_SHORT)
    monkeypatch.delenv(WAIT_VARIABLE)
    device_at.cache_clear()  # what was waited for in vain is asked once only
    target = there(board, python=str(python))
    caplog.clear()

    def waiting() -> bool:
        said = [record.getMessage() for record in caplog.records]
        return any("waiting for the device" in text and "make room" in text for text in said)

    def tidy() -> None:
        assert until(waiting)
        full.unlink()

    tidying = threading.Thread(target=tidy)
    with caplog.at_level(logging.INFO, "autocompress"):
        tidying.start()
        assert paired_timing(target, file, file, plan=_SHORT).latency_ms > 0
    tidying.join()
    assert not full.exists()


def test_a_disk_that_is_full_for_a_profile_is_the_devices_fault(
    board: LoopbackDevice,
    exported: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files get there, and the runtime's own profile does not fit; no trial is to fail of that."""
    room = 200_000 + exported[".onnx"].stat().st_size
    lines = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
    target = there(board, python=str(other_python(tmp_path / "full", lines)))
    monkeypatch.setenv(WAIT_VARIABLE, "0")
    with closing(target.open(exported[".onnx"])) as session:
        assert session.profile(random_inputs(session.inputs), runs=1).nodes
        with pytest.raises(DeviceLost, match=r"takes no files in .*File too large.*make room"):
            session.profile(random_inputs(session.inputs), runs=500)


@pytest.mark.timeout(120)
def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(
    board: LoopbackDevice, exported: dict[str, Path]
) -> None:
    target, file = there(board), exported[".onnx"]
    target.reach()
    long = Plan(precision=1e-9, max_seconds=4.0, slot_ms=1.0)
    with pytest.raises(TookTooLong), time_limit(1.0, lambda: None):
        paired_timing(target, file, file, plan=long)
    assert {"Conv"} <= set(inspect_file(target, file).profile.by_op())


def test_a_wait_for_another_study_on_the_device_is_no_trials_fault(
    board: LoopbackDevice, exported: dict[str, Path], tmp_path: Path
) -> None:
    """Which holds a lock there, as a request of its own does for as long as it takes."""
    fcntl = pytest.importorskip("fcntl")
    place = tmp_path / "busy"
    python = other_python(place, f"import tempfile\ntempfile.tempdir = {str(place)!r}\n")
    target = there(board, python=str(python))
    assert target.elsewhere is not None
    ask = (target.elsewhere.ask, "look", target.fields(), [exported[".onnx"]])
    target.reach()
    before, counted = outside_wait_s(), list[bool]()
    with (place / f"autocompress-device-{os.getuid()}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def end() -> None:
            counted.append(until(lambda: outside_wait_s() > before + 1.5, 60))
            fcntl.flock(held, fcntl.LOCK_UN)

        ending = threading.Thread(target=end)
        ending.start()
        assert ask[0](*ask[1:])[0] > 0
        ending.join()
        assert counted == [True]
        fcntl.flock(held, fcntl.LOCK_EX)
        with ends_within(0.5), pytest.raises(DeviceLost, match=r"not free: another study"):
            ask[0](*ask[1:])
    assert ask[0](*ask[1:])[0] > 0  # and nobody waits for whoever gave up


@pytest.mark.parametrize("wrong", ["soon", "-1", "nan", "9" * 400])
def test_a_wrong_limit_of_waits_is_told_before_the_device_is_asked(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """And not where it is lost, hours later."""
    monkeypatch.setenv(WAIT_VARIABLE, wrong)
    device = Device("ssh://nobody@127.0.0.1:1", "python3", lambda file: ())
    with pytest.raises(InputError, match=f"{WAIT_VARIABLE}.* seconds, 0 or more"):
        _ = device.version
