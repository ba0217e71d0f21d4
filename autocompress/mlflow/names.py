"""Names that MLflow and a file system take, from whatever text a study or a run holds."""

from __future__ import annotations

import hashlib
import re

from autocompress.policy.writing import printable

_LONGEST = 200
"""Databases of MLflow's have 256 characters for a name."""
_PART = re.compile(r"[A-Za-z0-9_-]{1,100}")


def experiment_name(text: str) -> str:
    """The text as one line of printable characters, cut off where it is too long."""
    name = printable(text)
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{_digest(text)}"
    return name if name.strip() else "unnamed"


def safe_part(text: str) -> str:
    """A text as one part of a path and of a model's name: letters, digits, ``_`` and ``-``.

    What is such a part already stays as it is; others end with a digest, so that no two are one.
    """
    if _PART.fullmatch(text):
        return text
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:80]
    return f"{slug}-{_digest(text)}".lstrip("-")


def model_name(experiment: str) -> str:
    """Under what an experiment's best model is registered."""
    return f"autocompress-{safe_part(experiment)}"


def tag_value(text: str) -> str:
    """A text that can stand in quotes in one of MLflow's searches; most stay as they are."""
    return text if text.isprintable() and not {*"'\"`\\"} & {*text} else safe_part(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
