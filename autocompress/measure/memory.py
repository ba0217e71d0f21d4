"""Peak memory of an exported file: what opening and running it adds to a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from autocompress.errors import MeasurementError
from autocompress.targets import get_target
from autocompress.targets.base import TargetConfig
from autocompress.targets.lengths import drawn_inputs

_STATUS = Path("/proc/self/status")
_RUNS = 3


def peak_memory_bytes(config: TargetConfig, path: str | Path) -> int | None:
    """Most memory that a file needs beyond what the runtime itself holds.

    A fresh process loads the runtime, notes its resident memory, opens the file and runs it a few
    times on random inputs; the growth of its peak is the answer. Weights, activations and the
    runtime's own buffers count alike.

    Args:
        config: the target's.
        path: an exported file.

    Returns:
        Bytes, or ``None`` where the system does not tell a process its peak (only Linux does).

    Raises:
        MeasurementError: the process failed.
    """
    if not _STATUS.is_file():
        return None
    asked = json.dumps({"target": config.model_dump(mode="json"), "path": str(path)})
    command = [sys.executable, "-P", "-m", "autocompress.measure.memory", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise MeasurementError(f"Measuring the memory of {path} failed: {last[0]}")
    return int(done.stdout)


def _resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (its peak) of this process in bytes."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise MeasurementError(f"The system does not tell {field} of a process.")


def main(asked: str) -> None:
    """Print the growth of this process's peak memory."""
    request = json.loads(asked)
    target = get_target(request["target"])
    before = _resident("VmRSS")
    with closing(target.open(Path(request["path"]))) as session:
        run = session.prepare(drawn_inputs(session, target.config)[-1])
        for _ in range(_RUNS):
            run()
        print(max(0, _resident("VmHWM") - before))


if __name__ == "__main__":
    main(sys.argv[1])
