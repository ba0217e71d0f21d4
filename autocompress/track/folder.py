"""The folder of one run: where everything lies, and how it is written so that nothing is torn."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import AutocompressError, InputError, nearest
from autocompress.policy.files import kind, no_folder
from autocompress.policy.reading import read_mapping
from autocompress.policy.section import Section
from autocompress.policy.settings import as_written
from autocompress.policy.writing import replacing
from autocompress.results.metric import Measurement
from autocompress.track.forms import FORMAT, IdentityForm, StudyForm, SummaryForm, check_format


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
        """Summary of the run: best trial, front, reference policies, hypervolume."""
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
        """Whether the folder holds a run: a journal that is not empty, or at least its study.

        Something of their names that is no file counts too: ``check_plain`` tells of it.
        """
        if kind(self.study, follow=False) is not None:
            return True
        journal = kind(self.trials, follow=False)
        return journal is not None and (journal != "file" or self.trials.stat().st_size > 0)

    @classmethod
    def create(cls, path: str | Path, *, resume: bool = False) -> RunFolder:
        """Make the folder of a new run, or take up an old one.

        Args:
            path: the folder; parents are made.
            resume: whether an existing run is to be continued.

        Raises:
            InputError: there is a run already and ``resume`` was not asked, the path is no folder,
                or what lies there is not plain. Nothing was touched then.
        """
        folder = cls(Path(path))
        folder.check_free(resume=resume)
        for part in (folder.root, folder.recipes, folder.models):
            part.mkdir(parents=True, exist_ok=True)
        return folder

    def check_free(self, *, resume: bool = False) -> None:
        """See that a run can be written here; see ``create``."""
        if kind(self.root, follow=False) not in (None, "folder") and not self.root.is_dir():
            raise InputError(
                f"A run needs a folder, and {self.root} is a {kind(self.root) or 'link to nothing'}"
                ". Choose another --out."
            )
        above = no_folder(self.root)
        if above is not None:
            raise InputError(
                f"A run needs a folder, and {above}, above {self.root}, is none. Choose another "
                "--out."
            )
        if self.is_run and not resume:
            raise InputError(
                f"{self.root} already holds a run. Continue it with --resume, "
                "or choose another folder with --out."
            )
        self.check_plain()

    @classmethod
    def open(cls, path: str | Path, *, root: str | Path = "runs") -> RunFolder:
        """Find an existing run.

        Args:
            path: its folder; a bare name is looked for in ``root`` too.
            root: folder of runs.

        Raises:
            InputError: no run is there; names the nearest one. Or it is not plain.
        """
        given = Path(path)
        tried = [given] if given.is_absolute() else [given, Path(root) / given]
        for candidate in tried:
            if cls(candidate).is_run:
                cls(candidate).check_plain()
                return cls(candidate)
        parents = dict.fromkeys((given.parent, Path(root)))
        beside = [run.name for parent in parents for run in cls.all(parent)]
        hint = nearest(given.name, beside) if beside else "`autocompress search` makes one."
        if inside := [str(run.root) for run in cls.all(given)]:
            hint = f"in it there is {' and '.join(inside[:3])}{' and more' * (len(inside) > 3)}."
        what = "There is no run at {} (a run holds trials.jsonl or study.yaml); {}"
        raise InputError(what.format(path, hint))

    @classmethod
    def all(cls, root: str | Path) -> list[RunFolder]:
        """Every run directly below a folder, by name."""
        root = Path(root)
        if not root.is_dir():
            return []
        found = []
        for path in sorted(root.iterdir()):
            with suppress(OSError):  # a folder that may not be looked into is nobody's run here
                if path.is_dir() and cls(path).is_run:
                    found.append(cls(path))
        return found

    def check_plain(self) -> None:
        """Refuse what is neither a file nor a folder, and one in the place of the other.

        What is written to or read from a link would be elsewhere; a pipe never ends.

        Raises:
            InputError: names the first one.
        """
        for folder, names, files in os.walk(self.root):
            for name in (*names, *files):
                path = Path(folder, name)
                found = kind(path, follow=False)
                if found == "link":
                    raise InputError(
                        f"{path} is a link, and a run holds plain files only. "
                        "Remove it, or put a copy of what it points to in its place."
                    )
                wanted = self._kind_of(path)
                if found is not None and found not in wanted:
                    raise InputError(
                        f"{path} is a {found}, and a run has a {wanted[0]} there. Move it away."
                    )

    def _kind_of(self, path: Path) -> tuple[str, ...]:
        """What may lie at a path of the run: its own names are of one kind."""
        if path in (self.recipes, self.models, *(self.root / n for n in ("earlier", "elsewhere"))):
            return ("folder",)
        own = (self.study, self.trials, self.screened, self.lock, self.front, self.report)
        baselines = (self.baseline(), self.baseline("test"))
        return ("file",) if path in (*own, *baselines, self.root / "run.json") else _PLAIN

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
        """A name that no other run has, not even a later one in the same folder; made once.

        A run that was moved keeps it; a copy, whose original is still there, gets one of its own.
        """
        found, here = self._identity(), _as_text(str(self.root.resolve()))
        if found is None or self._is_copy(found):
            new = f"{_as_text(self.name)}-{uuid.uuid4().hex[:12]}"
            write_json(self.root / "run.json", {"id": new, "format": FORMAT, "folder": here})
            return new
        if found.get("folder") != here:
            with suppress(OSError):  # a run that may only be read stays as it is
                write_json(self.root / "run.json", {**found, "folder": here})
        return str(found["id"])

    def _is_copy(self, identity: Mapping[str, Any]) -> bool:
        """Whether the folder that an identity was made for is another one, and still has it."""
        first = identity.get("folder")
        try:
            if not first or os.path.samefile(first, self.root):
                return False
            file = Path(first, "run.json")
            there = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(there, dict) and there.get("id") == identity["id"]

    def _identity(self) -> dict[str, Any] | None:
        path = self.root / "run.json"
        found = read_json(path, "run's identity")
        if found is not None:
            check_format(found.get("format"), f"The run in {self.root}")
            _check(IdentityForm, found, path, _DELETE)
        return found

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Keep the resolved study, and which form the run's files have."""
        self.identity()
        # the mark at its end tells a whole file from one that was cut off and can still be read
        text = yaml.safe_dump(plain(study), sort_keys=False, explicit_end=True)
        write_atomically(self.study, text)

    def read_study(self) -> dict[str, Any]:
        """The resolved study with all its settings, or nothing where none was written.

        Raises:
            InputError: it is damaged, or only a part of it is left.
        """
        self._identity()
        if not self.study.is_file():
            return {}
        remedy = (
            "Put the study that the run was begun with in its place; without the file, --resume "
            "with that study writes it again."
        )
        found = read_mapping(self.study, "study", remedy=remedy)
        whole = self.study.read_bytes().rstrip().endswith(b"\n...")
        # studies of earlier versions have no mark, and this key at their end
        if not whole and "ray_address" not in found:
            raise InputError(
                f"{self.study} is not whole: its end is missing, and with it what the run was to "
                f"keep to. {remedy}"
            )
        _check(StudyForm, found, self.study, remedy)
        settings = found.get("settings")
        return found if settings is None else {**found, "settings": as_written(settings)}

    def write_baseline(self, measurement: Measurement, split: str = "val") -> None:
        """Keep what the uncompressed model does on one split."""
        write_json(self.baseline(split), measurement.as_dict())

    def read_baseline(self, split: str = "val") -> Measurement | None:
        """What the uncompressed model does, or ``None`` where it was not measured yet.

        Raises:
            InputError: the file is damaged.
        """
        path = self.baseline(split)
        found = read_json(path, "measurement")
        if found is None:
            return None
        try:
            return Measurement.from_dict(found)
        except AutocompressError as error:
            raise InputError(f"{path}: {error} {_DELETE}") from None

    def write_front(self, summary: Mapping[str, Any]) -> None:
        """Keep the run's summary."""
        write_json(self.front, summary)

    def read_front(self) -> dict[str, Any]:
        """The run's summary, or nothing where none was written.

        Raises:
            InputError: the file is damaged.
        """
        return read_json(self.front, "summary", SummaryForm) or {}

    def best_model(self) -> Path | None:
        """Exported file of the answer, where the summary names one that is still there."""
        name = self.read_front().get("model")
        path = self.root / name if isinstance(name, str) else None
        if path is None or not path.is_file():
            return None
        return path if path.resolve().is_relative_to(self.root.resolve()) else None


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


def read_json(path: Path, what: str, form: type[Section] | None = None) -> dict[str, Any] | None:
    """Read a mapping; ``None`` where there is no such file.

    Args:
        path: of JSON.
        what: it should be, for error messages.
        form: that it must have.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return None
    found = read_mapping(path, what, form="JSON", remedy=_DELETE)
    if form is not None:
        _check(form, found, path, _DELETE)
    return found


def _as_text(path: str) -> str:
    """A path as files of text can hold it; bytes that are no UTF-8 become ``\\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check(form: type[Section], found: dict[str, Any], path: Path, remedy: str) -> None:
    try:
        form.read(found, where=str(path))
    except InputError as error:
        raise InputError(f"{error} {remedy}") from None


_PLAIN = ("file", "folder")
_DELETE = "Delete the file; --resume writes it again."


def write_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary one beside it; parent folders are made."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
        partial.chmod(0o644)  # runs are meant to be read by others too
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
