"""What lies beside the files of a cascade and says how they are asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from autocompress.cascade.confidence import Confidence, Scores
from autocompress.errors import InputError, explained

_T = TypeVar("_T")
Takes = Literal["inputs", "features"]
"""What a stage's file takes: the network's inputs, or what the stage before it hands on."""
MANIFEST = "cascade.json"
FORMAT = 1
MANY = 10_000
"""More threads, or outputs of a file, than there are anywhere."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Files that are asked together; two where they are to agree.

    Args:
        files: names in the manifest's folder.
        temperatures: of each file's probabilities.
        threshold: the stage answers what it is so sure of, or surer; ``None``: all that is left.
        takes: the network's inputs; or the features that the file of the stage before gives as its
            last output, behind those of the network.

    Raises:
        InputError: a name that leads elsewhere, or a number that is not finite.
    """

    files: tuple[str, ...]
    temperatures: tuple[float, ...]
    threshold: float | None
    takes: Takes = "inputs"

    def __post_init__(self) -> None:
        for name in self.files:
            if not name.strip(".") or any(c in name for c in "/\\:\0"):
                raise InputError(f"`files` must be bare names beside the manifest, got {name!r}.")
        if not self.files or len(self.files) != len(self.temperatures):
            raise InputError("A stage needs a temperature for each of its files.")
        if not all(0 < t < math.inf for t in self.temperatures):
            raise InputError(
                f"`temperatures` must be above 0 and finite, got {list(self.temperatures)}."
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"`threshold` must be finite or null, got {self.threshold}.")
        if self.takes not in get_args(Takes):
            raise InputError(f"`takes` must be inputs or features, got {self.takes!r}.")


@dataclass(frozen=True, slots=True)
class Manifest:
    """How a cascade works.

    Args:
        confidence: by which a stage answers or hands on.
        scores: what the output holds, logits of classes or one logit of yes.
        output: place of that output among the files' outputs.
        stages: the first to be asked first.
        threads: of one operator, as it was timed.
    """

    confidence: Confidence
    scores: Scores
    output: int
    stages: tuple[Stage, ...]
    threads: int = 1

    def __post_init__(self) -> None:
        for name, kinds in (("confidence", Confidence), ("scores", Scores)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise InputError(f"`{name}` must be one of {known}, got {getattr(self, name)!r}.")
        *others, last = [stage.threshold for stage in self.stages] or [0.0]
        if last is not None or not others or any(t is None for t in others):
            raise InputError("Every stage but the last needs a threshold, and there must be two.")
        for name, least in (("output", 0), ("threads", 1)):
            if not least <= getattr(self, name) < MANY:
                raise InputError(
                    f"`{name}` must be from {least} to {MANY - 1}, got {getattr(self, name)}."
                )
        asked = [len(stage.files) for stage in self.stages]
        if asked != ([2, 1] if self.confidence == "agreement" else [1] * len(asked)):
            raise InputError(f"Stages of {asked} files do not fit the confidence.")
        taking = [stage.takes for stage in self.stages]
        if taking[0] == "features" or ("features" in taking and self.confidence == "agreement"):
            raise InputError("`takes: features` needs a stage of one file before it.")

    def save(self, folder: Path) -> Path:
        """Write it into the folder of its files."""
        path = folder / MANIFEST
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest, by its path or its folder.

        Raises:
            InputError: none is there, or it is damaged or of another version.
        """
        given = Path(path)
        file = given / MANIFEST if given.is_dir() else given
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"There is no cascade at {file} ({error.strerror}); `autocompress cascade` makes "
                "one."
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is no JSON: {error}.") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{file} is no manifest of format {FORMAT}.")
        try:
            return cls.read(found)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{file} is damaged: {explained(error)}.") from None
        except InputError as error:
            raise InputError(f"{file}: {error}") from None

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Manifest:
        """From plain data."""
        stages = tuple(
            Stage(
                tuple(_as(str, name, "files") for name in _as(list, stage["files"], "files")),
                tuple(_as(float, heat, "temperatures") for heat in stage["temperatures"]),
                None if stage["threshold"] is None else _as(float, stage["threshold"], "threshold"),
                stage.get("takes", "inputs"),
            )
            for stage in data["stages"]
        )
        output, threads = (_as(int, data[name], name) for name in ("output", "threads"))
        return cls(data["confidence"], data["scores"], output, stages, threads)


def _as(kind: type[_T], value: Any, name: str) -> _T:
    """A value of the file as it is to be; whole numbers are fractions, too.

    Raises:
        TypeError: it is of another kind.
    """
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise TypeError(f"`{name}` holds {value!r}, which is no {kind.__name__}")
    return value
