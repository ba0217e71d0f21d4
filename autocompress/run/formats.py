"""Which files a model can be written as in this installation, and who writes each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.errors import InputError, TargetUnavailable
from autocompress.targets import get_target
from autocompress.targets.base import Target, TargetConfig
from autocompress.targets.registry import entries, load_entry

if TYPE_CHECKING:
    from autocompress.exporters.write import Writer


def writer_of(path: Path, target: TargetConfig | None = None) -> Writer:
    """Who writes a file of the path's suffix.

    Args:
        path: of the file.
        target: of a study: its file is the one that was measured. Other suffixes are
            those of autocompress itself, then of any other target.

    Raises:
        InputError: nobody does; the message lists what is written here.
        TargetUnavailable: the runtime that writes such files is not present.
    """
    from autocompress.exporters.write import WRITERS, export

    if target is not None:
        own = get_target(target)
        if path.suffix in _suffixes(own):
            return own.export
    if path.suffix in WRITERS:
        return export
    for other in _targets():
        if path.suffix in _suffixes(other):
            return get_target(other.name).export
    here = [suffix for t in _targets() if t.availability().available for suffix in _suffixes(t)]
    listed = ", ".join(dict.fromkeys([*WRITERS, *here]))
    raise InputError(
        f"A model is written here to files that end in {listed}; got {path.name!r}. Targets of "
        "installed packages can bring more."
    )


def known_suffixes() -> set[str]:
    """Those of all files that a model can be written as, whether its runtime is present or not."""
    from autocompress.exporters.write import WRITERS

    return {*WRITERS, *(suffix for target in _targets() for suffix in _suffixes(target))}


def _targets() -> Iterator[type[Target]]:
    """The targets that are registered; those of broken packages are left out."""
    for entry in entries():
        try:
            yield load_entry(entry)
        except TargetUnavailable:
            continue


def _suffixes(target: Target | type[Target]) -> tuple[str, ...]:
    return (target.suffix, *target.also_writes)
