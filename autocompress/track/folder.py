"""The folder of one run: where everything lies, and how it is written so that nothing is torn."""

from __future__ import annotations

import json
import math
import os
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import InputError, nearest
from autocompress.policy.reading import read_mapping
from autocompress.results.metric import Measurement


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. Building it touches nothing; ``create`` and ``open`` look at the disk.

    Args:
        root: the folder, ``runs/NAME`` by custom.
    """

    root: Path

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.root.resolve().name

    @property
    def study(self) -> Path:
        """The resolved study."""
        return self.root / "study.yaml"

    @property
    def trials(self) -> Path:
        """The journal: append-only, the truth."""
        return self.root / "trials.jsonl"

    @property
    def screened(self) -> Path:
        """Divergences of the policies that were looked at quickly; a cache."""
        return self.root / "screened.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes the journal."""
        return self.root / "trials.lock"

    @property
    def front(self) -> Path:
        """Summary of the run: best trial, front, baselines, hypervolume."""
        return self.root / "front.json"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.root / "report.html"

    @property
    def recipes(self) -> Path:
        """Folder of recipes."""
        return self.root / "recipes"

    @property
    def models(self) -> Path:
        """Folder of exported models."""
        return self.root / "models"

    def baseline(self, split: str = "val") -> Path:
        """Measurement of the uncompressed model on one split."""
        return self.root / ("baseline.json" if split == "val" else f"baseline_{split}.json")

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run: its journal, or at least its study."""
        return self.trials.is_file() or self.study.is_file()

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> RunFolder:
        """Make the folder of a new run, or take up an old one.

        Args:
            path: the folder; parents are made.
            resume: whether an existing run is to be continued.

        Raises:
            InputError: there is a run already and ``resume`` was not asked, or the path is no
                folder. Nothing was touched then.
        """
        folder = cls(Path(path))
        if folder.root.exists() and not folder.root.is_dir():
            raise InputError(f"A run needs a folder, and {path} is a file. Choose another --out.")
        if folder.is_run and not resume:
            raise InputError(
                f"{path} already holds a run. Continue it with --resume, "
                "or choose another folder with --out."
            )
        for part in (folder.root, folder.recipes, folder.models):
            part.mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: str | Path, *, root: str | Path = "runs") -> RunFolder:
        """Find an existing run.

        Args:
            path: its folder; a bare name is looked for in ``root`` too.
            root: folder of runs.

        Raises:
            InputError: no run is there; names the nearest one.
        """
        given = Path(path)
        tried = [given] if given.is_absolute() else [given, Path(root) / given]
        for candidate in tried:
            if cls(candidate).is_run:
                return cls(candidate)
        beside = [
            run.name
            for parent in dict.fromkeys((given.parent, Path(root)))
            for run in cls.all(parent)
        ]
        hint = nearest(given.name, beside) if beside else "there is no run beside it"
        raise InputError(
            f"There is no run at {path} (a run holds trials.jsonl or study.yaml); {hint}"
        )

    @classmethod
    def all(cls, root: str | Path) -> list[RunFolder]:
        """Every run directly below a folder, by name."""
        root = Path(root)
        if not root.is_dir():
            return []
        return [run for run in (cls(p) for p in sorted(root.iterdir()) if p.is_dir()) if run.is_run]

    def set_aside(self) -> Path:
        """Move all that the run holds into ``earlier/N``, so that another can begin in its place.

        Returns:
            Where it lies now.
        """
        earlier = self.root / "earlier"
        place = earlier / str(1 + sum(1 for _ in earlier.glob("*")))
        place.mkdir(parents=True)
        for path in sorted(self.root.iterdir()):
            if path not in (earlier, self.lock):
                os.replace(path, place / path.name)
        return place

    def identity(self) -> str:
        """A name that no other run has, not even a later one in the same folder; made once."""
        path = self.root / "run.json"
        found = read_json(path)
        if not isinstance(found, dict) or "id" not in found:
            found = {"id": f"{self.name}-{uuid.uuid4().hex[:12]}"}
            write_json(path, found)
        return str(found["id"])

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Keep the resolved study."""
        write_atomically(self.study, yaml.safe_dump(plain(study), sort_keys=False))

    def read_study(self) -> dict[str, Any]:
        """The resolved study, or nothing where none was written."""
        if not self.study.is_file():
            return {}
        return read_mapping(self.study, "study")

    def write_baseline(self, measurement: Measurement, split: str = "val") -> None:
        """Keep what the uncompressed model does on one split."""
        write_json(self.baseline(split), measurement.as_dict())

    def read_baseline(self, split: str = "val") -> Measurement | None:
        """What the uncompressed model does, or ``None`` where it was not measured yet."""
        found = read_json(self.baseline(split))
        return None if found is None else Measurement.from_dict(found)

    def write_front(self, summary: Mapping[str, Any]) -> None:
        """Keep the run's summary."""
        write_json(self.front, summary)

    def read_front(self) -> dict[str, Any]:
        """The run's summary, or nothing where none was written."""
        found = read_json(self.front)
        return found if isinstance(found, dict) else {}

    def best_model(self) -> Path | None:
        """Exported file of the answer, where the summary names one that is still there."""
        name = self.read_front().get("model")
        path = self.root / name if isinstance(name, str) else None
        return path if path is not None and path.is_file() else None


def plain(value: Any) -> Any:
    """Make a value JSON-able: mappings, sequences, numpy scalars, paths; NaN becomes null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    write_atomically(path, json.dumps(plain(value), indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; ``None`` where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not readable as JSON: {error}. Delete it; --resume writes it again."
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary one beside it; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes the file private; runs are meant to be read by others too
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
