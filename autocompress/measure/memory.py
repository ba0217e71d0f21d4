"""Peak memory of an exported file: what opening and running it adds to a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from autocompress.errors import MeasurementError
from autocompress.machine.scratch import scratch_folder
from autocompress.measure.peak import STATUS, peak_growth
from autocompress.targets import get_target
from autocompress.targets.base import Target


def no_memory(target: Target) -> str:
    """Why nothing tells the peak memory of files on a target, and what helps; else empty."""
    if target.elsewhere is not None or (STATUS.is_file() and target.in_process):
        return ""
    if target.in_process:
        return "this system tells no process its peak. Linux does, here or on a device over ssh"
    return f"{target.name!r} runs files in a process of its own. Choose another runtime"


def peak_memory_bytes(target: Target, path: str | Path) -> int | None:
    """Most memory that a file needs beyond what the runtime itself holds.

    A fresh process loads the runtime, notes its resident memory, opens the file and runs it a few
    times on random inputs; the growth of its peak is the answer. Weights, activations and the
    runtime's own buffers count alike.

    Args:
        target: where it runs; a device measures it there.
        path: an exported file.

    Returns:
        Bytes, or ``None`` where nothing tells it, for the reason of ``no_memory``.

    Raises:
        MeasurementError: the process failed.
    """
    if target.elsewhere is not None:
        found, _ = target.elsewhere.ask("memory", target.fields(), [Path(path)])
        return None if found is None else int(found)
    if no_memory(target):
        return None
    with scratch_folder("memory") as folder:
        file = target.lowered(Path(path), folder)  # lowering takes far more memory than running
        asked = json.dumps({"target": target.config.model_dump(mode="json"), "path": str(file)})
        command = [sys.executable, "-P", "-m", "autocompress.measure.memory", asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise MeasurementError(f"Measuring the memory of {path} failed: {last[0]}")
    return int(done.stdout)


def main(asked: str) -> None:
    """Print the growth of this process's peak memory."""
    request = json.loads(asked)
    target = get_target(request["target"])
    print(peak_growth(partial(target.open, Path(request["path"])), target.config))


if __name__ == "__main__":
    main(sys.argv[1])
