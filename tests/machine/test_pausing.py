"""Workers that pause wherever they are while another process times."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable

import pytest
from lock_processes import BUSY, TIMING, Other

from autocompress.machine.lock import after_timing, lock_folder


def _counted(busy: Other) -> int:
    """How far a busy process is."""
    before = len(busy.said)
    busy.let_go()
    end = time.monotonic() + 20.0
    while len(busy.said) == before and time.monotonic() < end:
        time.sleep(0.01)
    return int(busy.said[before].removeprefix("count "))


def _until(moves: bool, busy: Other, seconds: float = 20.0) -> bool:
    """Wait until a busy process gets on, or does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = _counted(busy)
        time.sleep(0.2)
        if (_counted(busy) != before) == moves:
            return True
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_worker_pauses_in_the_middle_of_what_it_does(start: Callable[[str], Other]) -> None:
    """Without a word from its code, and as often as somebody times."""
    busy = start(BUSY)
    for _ in range(2):
        assert _until(True, busy)
        timing = start(TIMING)
        assert timing.reaches("holding")
        assert _until(False, busy)
        timing.let_go()
    assert _until(True, busy)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_worker_looks_into_the_folder_of_the_moment(start: Callable[[str], Other]) -> None:
    """It may be told of another one after it was made."""
    late = "pause_anywhere()\nimport os\nos.environ['AUTOCOMPRESS_LOCK_DIR'] = folder"
    begun = f"folder = {str(lock_folder())!r}\nimport os\n"
    begun += "os.environ['AUTOCOMPRESS_LOCK_DIR'] = folder + '-elsewhere'"
    busy = start(begun + BUSY.replace("pause_anywhere()\nprint", f"{late}\nprint"))
    timing = start(TIMING)
    assert timing.reaches("holding")
    assert _until(False, busy)
    timing.let_go()
    assert _until(True, busy)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("taken", ["signal.SIG_DFL", "lambda *_: print('mine', flush=True)"])
def test_a_signal_that_other_code_has_taken_is_left_to_it(
    taken: str, start: Callable[[str], Other]
) -> None:
    """By default it would end the process."""
    take = f"pause_anywhere()\nimport signal\nsignal.signal(signal.SIGUSR1, {taken})"
    busy = start(BUSY.replace("pause_anywhere()\nprint", f"{take}\nprint"))
    timing = start(TIMING)
    assert timing.reaches("holding")
    for _ in range(5):
        assert _until(True, busy)
    assert busy.process.poll() is None
    assert "mine" not in busy.said


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_worker_does_not_pause_for_the_dead(start: Callable[[str], Other]) -> None:
    """Whose note is removed, so that nobody is asked to look again."""
    busy, timing = start(BUSY), start(TIMING)
    assert timing.reaches("holding")
    timing.kill()
    assert _until(True, busy)
    note, end = lock_folder() / "holder.json", time.monotonic() + 20.0
    while note.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not note.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_whoever_is_interrupted_while_it_pauses_keeps_no_lock(
    start: Callable[[str], Other],
) -> None:
    """As an evaluation is whose time is over."""

    class Over(BaseException):
        pass

    def ring(number: int, frame: object) -> None:
        raise Over

    timing = start(TIMING)
    assert timing.reaches("holding")
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Over):
            after_timing()
    finally:
        signal.signal(signal.SIGALRM, before)
    timing.let_go()
    assert timing.reaches("released")
    later = start(TIMING)
    assert later.reaches("holding")
