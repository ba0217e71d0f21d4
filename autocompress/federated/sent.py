"""What a client was sent once and keeps on its disk, such as a layer bank."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.federated.messages import digest_of
from autocompress.federated.own_rules import check_digest, is_digest
from autocompress.policy.writing import replacing

KEPT = 4
"""Things that are kept; of more, those that were asked for last stay."""


@dataclass(frozen=True)
class Sent:
    """Files that are called by the digest of their content.

    Args:
        folder: is made.
    """

    folder: Path

    def path(self, name: str) -> Path:
        """Where one of them lies.

        Raises:
            InputError: the name is no digest.
        """
        check_digest(name)
        return self.folder / f"{name}.safetensors"

    def keep(self, arrays: Mapping[str, NDArray[Any]], asked: Collection[str] = ()) -> None:
        """Keep what a message holds, and few of earlier ones.

        Args:
            arrays: of the message.
            asked: digests of those that the message is about.

        Raises:
            InputError: one is not called by its digest.
        """
        for name in [n for n in arrays if n.startswith("blob.")]:
            digest, blob = name.removeprefix("blob."), arrays[name].tobytes()
            path = self.path(digest)
            if digest_of(blob) != digest:
                raise InputError(f"What was sent as {digest} has another digest.")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    partial.write_bytes(blob)
        for name in asked:
            if (path := self.path(name)).exists():
                path.touch()  # used last
        held = [p for p in self.folder.glob("*.safetensors") if is_digest(p.stem)]
        for path in sorted(held, key=_changed, reverse=True)[KEPT:]:
            path.unlink(missing_ok=True)  # other clients of a simulation clean up as well


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another client was quicker
        return 0.0
