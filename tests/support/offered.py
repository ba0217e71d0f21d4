"""Techniques as installed packages offer them, for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from autocompress.policy import registry
from autocompress.policy.technique import Field, Technique


class Narrow(Technique):
    """Channel groups lose all but a number of channels."""

    name = "narrow"
    fields: ClassVar[tuple[Field, ...]] = (
        Field("most_channels", 0, "how many stay; 0 leaves all.", values=(0, 12, 4)),
    )
    knob = "narrow"
    stage = "channels"
    coupled = True

    def timed_levels(self, count):  # type: ignore[no-untyped-def]  # as of Technique
        return [count - 1]

    def kept(self, group, policy, multiple):  # type: ignore[no-untyped-def]  # as of Technique
        return min(group.channels, policy.value("most_channels") or group.channels)

    def unfit(self, target, settings):  # type: ignore[no-untyped-def]  # as of Technique
        return "narrow files do not open in torch" if target.name == "torch" else ""

    def no_gain(self, target):  # type: ignore[no-untyped-def]  # as of Technique
        return "for no reason" if target.name == "openvino" else ""


def _clear() -> None:
    for cached in (
        registry.added,
        registry.in_order,
        registry.by_knob,
        registry.added_fields,
        registry.field_names,
    ):
        cached.cache_clear()


@contextmanager
def offering(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., None]]:
    """Gives a function that lets packages offer objects: pairs of a name and the object."""

    def found(*offered: tuple[str, object]) -> None:
        points = [EntryPoint(n.lower(), f"somewhere:{n}", registry.GROUP) for n, _ in offered]
        kinds = {name.lower(): kind for name, kind in offered}
        load = EntryPoint.load  # what other packages offer is loaded as ever
        monkeypatch.setattr(
            EntryPoint,
            "load",
            lambda point: kinds[point.name] if point.name in kinds else load(point),
        )
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        _clear()

    try:
        yield found
    finally:
        monkeypatch.undo()
        _clear()
