"""A field of a layer's policy: what it may be, and how that is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autocompress.errors import PolicyError


@dataclass(frozen=True)
class Field:
    """One value of a layer policy, and what it may be.

    Args:
        name: key in policies and in the rules of a search space.
        default: changes nothing.
        text: what it means, for the JSON Schema.
        values: all that it may be, mildest first; empty where it is a number in a range.
        above, at_least, below, at_most: ends of the range.
        null: what ``null`` stands for, if it is allowed beside the range.
    """

    name: str
    default: Any
    text: str = ""
    values: tuple[Any, ...] = ()
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    null: str = ""

    def allows(self, found: Any) -> bool:
        """Whether a value is one of those that the field may have."""
        if self.values:
            return any(
                found == v and isinstance(found, bool) is isinstance(v, bool) for v in self.values
            )
        if found is None:
            return bool(self.null)
        return (
            isinstance(found, int | float)
            and not isinstance(found, bool)
            and (self.above is None or found > self.above)
            and (self.at_least is None or found >= self.at_least)
            and (self.below is None or found < self.below)
            and (self.at_most is None or found <= self.at_most)
            and found == found  # not NaN
        )

    @property
    def must(self) -> str:
        """What a value must be, for error messages."""
        if self.values:
            return "one of " + ", ".join("null" if v is None else str(v) for v in self.values)
        words = {"above": self.above, "at least": self.at_least}
        words |= {"below": self.below, "at most": self.at_most}
        ends = {word: f"{end:g}" for word, end in words.items() if end is not None}
        said = " and ".join(f"{word} {end}" for word, end in ends.items()) or "a number"
        if len(ends) == 2:
            first, last = "(" if "above" in ends else "[", ")" if "below" in ends else "]"
            said = f"in {first}{', '.join(ends.values())}{last}"
        return said + (f", or null for {self.null}" if self.null else "")

    def check(self, found: Any) -> None:
        """Refuse what is not allowed.

        Raises:
            PolicyError: with the field and what it must be.
        """
        if not self.allows(found):
            raise PolicyError(f"`{self.name}` must be {self.must}, got {found!r}.")

    def json_schema(self) -> dict[str, Any]:
        """What a value may be, as a JSON Schema."""
        if self.values:
            return {"enum": list(self.values)}
        ends = {
            "exclusiveMinimum": self.above,
            "minimum": self.at_least,
            "exclusiveMaximum": self.below,
            "maximum": self.at_most,
        }
        number = {"type": "number", **{k: v for k, v in ends.items() if v is not None}}
        return {"anyOf": [number, {"type": "null"}]} if self.null else number
