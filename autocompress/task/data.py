"""The three splits of a data set, as every other room sees them, from whatever a user has.

``split.py`` says what a split is, ``wrapping.py`` makes one of any source, ``cutting.py`` fills in
the splits that are missing.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.errors import AutocompressError, InputError, explained, nearest
from autocompress.task.batches import Reader
from autocompress.task.calling import own_place
from autocompress.task.cutting import Draws, cut
from autocompress.task.memory import Memory
from autocompress.task.nested import map_tensors, tensors
from autocompress.task.selection import Selection
from autocompress.task.split import Inputs, Split, counted, feed, portions
from autocompress.task.streamed import StreamedSplit
from autocompress.task.wrapping import wrap_drawn

__all__ = ["Data", "Inputs", "Split", "counted", "feed", "portions"]
if TYPE_CHECKING:
    from autocompress.task.task import Task

NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
"""What the three splits may be called, ours first."""

_KNOWN = ("classes", "metric", "loss", "augment", "name", "dynamic", "extra", "task")
_log = logging.getLogger(__name__)


@dataclass
class Data:
    """Three disjoint splits.

    Args:
        train: calibration and fine-tuning.
        val: what the search sees.
        test: used once, at the end.
        classes: number of classes, for the ready-made losses.
        augment: from a batch of stored inputs to an augmented one, or ``None``; ready-made
            augmentations live in ``recover.augment``.
        metric: from outputs and targets to a number where more is better; ``None`` is top-1, which
            one logit for targets 0 and 1 has too, and other single numbers do not.
        loss: from outputs and targets to a scalar; ``None`` is ``outputs.label_loss``.
        task: what the model is for; takes the place of ``metric`` and ``loss``. ``None`` is read
            from outputs and targets where that is certain (``settle``).
        name: for people and for the report.
        dynamic: input name to its free axes beside the batch, each by its own name, or ``auto``
            where they are to be found; see ``task.dynamic``.
        notes: what was made of the source, for people: splits that were cut, for example.
        memory: the budget of decoded samples; ``None`` is ``Memory.of()``.
    """

    train: Split
    val: Split
    test: Split
    classes: int | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    metric: Callable[[Tensor, Tensor], float] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    name: str = "data"
    extra: dict[str, Any] = field(default_factory=dict)
    dynamic: Any = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    memory: Memory | None = None
    task: Task | None = None

    @classmethod
    def wrap(
        cls,
        source: Any,
        *,
        input_fn: Callable[[Any], Any] | None = None,
        target_fn: Callable[[Any], Any] | None = None,
        memory: str | int | None = None,
        length: int | Mapping[str, int] | None = None,
        groups: Any = None,
        dynamic: Any = None,
    ) -> Data:
        """Take anything with ``train``, and with ``val`` and ``test`` or not (attributes or keys).

        What is missing is cut from ``train``; see ``cutting.cut``. Every keyword may also stand
        in the source, as an attribute or key.

        Args:
            source: splits as ``wrap_split`` takes them.
            input_fn: from a batch to the model's inputs, where a batch does not say.
            target_fn: from a batch to the targets, likewise.
            memory: budget of decoded samples, ``"2GB"``; see ``Memory.of``.
            length: samples to take of streams, for all splits or by split.
            groups: per sample of ``train``, what belongs together (a speaker, a patient); no group
                is cut apart.
            dynamic: see the class.

        Raises:
            InputError: there is no ``train``, or a split cannot be read.
        """
        options: dict[str, Any] = {
            "input_fn": input_fn,
            "target_fn": target_fn,
            "memory": memory,
            "length": length,
            "groups": groups,
            "dynamic": dynamic,
        }
        if isinstance(source, Described):
            said = {name: value for name, value in options.items() if value is not None}
            return cls.wrap(source.data, **{**source.options, **said})
        if isinstance(source, Data):
            early = ("input_fn", "target_fn", "length", "groups")
            late = [name for name in early if options[name] is not None]
            if late:
                raise InputError(
                    f"`{late[0]}` says how a source is read, and these data are read already. Give "
                    f"it where they are made: Data.wrap(source, {late[0]}=...)."
                )
            return source if dynamic is None else replace(source, dynamic=dynamic)
        for name, value in options.items():
            options[name] = _part(source, name) if value is None else value
        return cls._read(source, options)

    @classmethod
    def _read(cls, source: Any, options: Mapping[str, Any]) -> Data:
        """Read the splits, and cut those that are missing."""
        reader = Reader(options["input_fn"], options["target_fn"])
        budget = Memory.of(options["memory"])
        parts: dict[str, Split] = {}
        draws: Draws | None = None
        # train last: it is the largest, and streams where the others leave it no room
        for name in ("val", "test", "train"):
            given = next((p for n in NAMES[name] if (p := _part(source, n)) is not None), None)
            if given is not None:
                lengths = options["length"]
                own = lengths.get(name) if isinstance(lengths, Mapping) else lengths
                parts[name], draws = _named(name, given, reader, budget, own)
                if draws is not None and (name != "train" or len(parts) == len(NAMES)):
                    parts[name], draws = parts[name].subset(draws.order), None
        if "train" not in parts:
            raise InputError(
                "The data need a `train` split (attribute or key); `val` and `test` are cut from "
                f"it where they are missing. Found {_keys(source)}"
            )
        left_out = _unread(source, parts, options)
        parts, notes = cut(parts, options["groups"], draws)
        notes = left_out + notes
        known: dict[str, Any] = {n: v for n in _KNOWN if (v := _part(source, n)) is not None}
        if options["dynamic"] is not None:
            known["dynamic"] = options["dynamic"]
        for note in notes:
            _log.info("%s", note)
        splits = (parts["train"], parts["val"], parts["test"])
        data = cls(*splits, **known, notes=tuple(notes), memory=budget)
        data.check_apart()
        data.check_samples()
        return data

    def check_apart(self) -> None:
        """Warn where what is judged on was trained on."""
        for name, other in (("val", "train"), ("test", "train"), ("test", "val")):
            first, second = getattr(self, name), getattr(self, other)
            if len(first) == len(second) and first.fingerprint == second.fingerprint:
                warnings.warn(
                    f"The `{name}` split holds the same samples as `{other}`: what is found will "
                    "look better than it is. Leave it out, and it is cut from `train`.",
                    stacklevel=3,
                )

    def check_samples(self) -> None:
        """Warn of a split with one label for all samples, and of NaN in what lies in memory."""
        for name in ("train", "val", "test"):
            split = getattr(self, name)
            held = [] if isinstance(split, StreamedSplit) else tensors(split.stored)
            if any(bool(t.isnan().any()) for t in held if t.is_floating_point()):
                warnings.warn(
                    f"Inputs of the `{name}` split hold NaN: what a model answers to them, and a "
                    "metric makes of that, says nothing. Leave these samples out.",
                    stacklevel=3,
                )
            labels = split.labels
            if labels is not None and len(labels) > 1 and bool((labels == labels[0]).all()):
                warnings.warn(
                    f"All {len(labels)} samples of the `{name}` split have the target "
                    f"{int(labels[0])}: a model that always answers that is right. Give the split "
                    "samples of every class, or leave it out, and it is cut from `train`.",
                    stacklevel=3,
                )

    def fitted(self, model: nn.Module) -> Data:
        """The same data with inputs as a model's ``forward`` names them.

        Columns that the model does not take are left out, as Hugging Face's trainer does; where it
        takes none of them and there is one, it goes in by position.

        Raises:
            InputError: none of several columns is a parameter of the model.
        """
        selection = Selection.of(model, self.train.inputs(2))
        if selection is None:
            return self
        splits = {
            name: (split := getattr(self, name)).prepared_by(
                replace(selection, before=split.preprocess)
            )
            for name in ("train", "val", "test")
        }
        return replace(self, **splits, notes=(*self.notes, *selection.notes))

    def in_float32(self) -> Data:
        """The same data, inputs of double or half precision as float32, as prepared models are."""
        kinds = {x.dtype for x in tensors(self.train.inputs(1)) if x.is_floating_point()}
        if kinds <= {torch.float32}:
            return self
        splits = {
            name: (split := getattr(self, name)).prepared_by(_Float32(split.preprocess))
            for name in ("train", "val", "test")
        }
        return replace(self, **splits)

    @property
    def fingerprint(self) -> str:
        """Digest of all three splits."""
        parts = "".join(s.fingerprint for s in (self.train, self.val, self.test))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Float32:
    """Turns inputs of other number types into float32, after what a split does itself."""

    before: Callable[[Any], Any] | None

    def __call__(self, stored: Any) -> Any:
        value = stored if self.before is None else self.before(stored)
        return map_tensors(lambda x: x.float() if x.is_floating_point() else x, value)


@dataclass(frozen=True)
class Described:
    """A source with what was said about it in a call; picklable if both are.

    Args:
        data: anything that ``Data.wrap`` takes.
        options: keywords of ``Data.wrap``.
    """

    data: Any
    options: dict[str, Any]


def _part(source: Any, name: str) -> Any:
    """A key of a mapping, or an attribute of anything else."""
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _unread(source: Any, parts: Collection[str], options: Collection[str]) -> list[str]:
    """A note of keys that are neither split nor option.

    Raises:
        InputError: one is a split's name written wrongly, and that split is missing.
    """
    names = [n for n, own in NAMES.items() for n in own]
    known = {*names, *options, *_KNOWN}
    found = [str(key) for key in source if key not in known] if isinstance(source, Mapping) else []
    lacking = [name for name in NAMES if name not in parts]
    for key in found:
        if get_close_matches(key.lower(), lacking):
            told = nearest(key, names)
            raise InputError(f"`{key}` is no split; {told} Rename it, or leave it out.")
    said = f"Left out, for they are no splits: {', '.join(found)}."
    return [said] if found else []


def _keys(source: Any) -> str:
    if isinstance(source, Mapping):
        return f"the keys {list(source)}; {nearest('train', map(str, source))}"
    return f"a {type(source).__name__} without it: give {{'train': ...}}."


def _named(
    name: str, given: Any, reader: Reader, memory: Memory, length: int | None
) -> tuple[Split, Draws | None]:
    """One split as ``wrap_drawn`` gives it; what is wrong with it is said with its name."""
    try:
        split, draws = wrap_drawn(given, reader=reader, memory=memory, length=length)
        if not len(split):
            raise InputError("A split is empty.")
        return split, draws
    except InputError as error:
        raise InputError(f"The `{name}` split: {error}") from None
    except (AutocompressError, OSError):
        raise
    except Exception as error:  # a data set of anyone's raises whatever it stumbles on
        raise InputError(
            f"The `{name}` split cannot be read: {explained(error)}"
            f"{own_place(error)}. Mend the data set, or its `collate_fn`, so that "
            "`next(iter(loader))` gives a batch."
        ) from error
