"""The folder outside the repository where decoded data and trained weights are kept."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """``AUTOCOMPRESS_CACHE``, or ``autocompress`` in the user's cache folder; made if missing."""
    given = os.environ.get("AUTOCOMPRESS_CACHE")
    if given:
        folder = Path(given).expanduser()
    elif os.environ.get("XDG_CACHE_HOME"):
        folder = Path(os.environ["XDG_CACHE_HOME"]) / "autocompress"
    elif sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        folder = (Path(local) if local else Path.home() / "AppData" / "Local") / "autocompress"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches" / "autocompress"
    else:
        folder = Path.home() / ".cache" / "autocompress"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def latency_folder() -> Path:
    """Where times of kernels and whole models are kept, by device."""
    return cache_folder() / "latency"


def digest(*parts: object) -> str:
    """A short name for a cache file, from everything that its content depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
