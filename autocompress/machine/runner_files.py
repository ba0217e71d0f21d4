"""The program that another device runs: the runner, and those of our files that it needs."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath

RUNNER = "run_kernels.py"
_SHARED = (
    "errors.py",
    "estimate/on_device.py",
    "estimate/serving.py",
    "estimate/tasks.py",
    "exporters/kernel_names.py",
    "exporters/metadata.py",
    "machine/energy.py",
    "machine/facts.py",
    "machine/messages.py",
    "machine/scratch.py",
    "machine/waiting.py",
    "measure/joules.py",
    "measure/peak.py",
    "measure/quiet.py",
    "measure/rounds.py",
    "measure/sampling.py",
    "measure/taking.py",
    "policy/files.py",
    "policy/writing.py",
    "targets/lengths.py",
    "targets/onnx_session.py",
    "targets/profile.py",
    "targets/session.py",
)
"""What the runner imports, in a package of that name beside it; these need numpy and onnxruntime
only."""


@cache
def runner_files() -> dict[str, str]:
    """Name to text: the script, and a package that it finds before others."""
    package = Path(__file__).parents[1]
    files = {RUNNER: "estimate/device_runner.py", **{f"autocompress/{n}": n for n in _SHARED}}
    folders = {str(PurePosixPath(name).parent) for name in files} - {"."}
    empty = {f"{folder}/__init__.py": "" for folder in sorted({"autocompress", *folders})}
    return empty | {name: (package / f).read_text(encoding="utf-8") for name, f in files.items()}


@cache
def packed_runner() -> bytes:
    """The same as the bytes of a zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in runner_files().items():
            archive.writestr(name, text)
    return stream.getvalue()
