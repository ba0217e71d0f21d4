"""Which files a model can be written as: by autocompress itself, and by every target."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from measured_network import images, quantized, small

from autocompress.api_models import export
from autocompress.errors import InputError, TargetUnavailable
from autocompress.exporters.write import export as plain_export
from autocompress.run.formats import writer_of
from autocompress.targets import get_target, registry

OWN = """
from pathlib import Path
from autocompress.exporters.write import ExportedFile
from autocompress.targets import Availability
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget

class Own(OnnxRuntimeTarget):
    name = "own"
    suffix = ".own"
    also_writes = (".onnx",)

    def export(self, compressed, path, example):
        Path(path).write_text(compressed.policy.digest + self.config.device)
        return ExportedFile(Path(path), Path(path).stat().st_size, ())

class Absent(Own):
    name = "absent"
    suffix = ".absent"
    install = "ask for it"

    @classmethod
    def present(cls):
        raise ImportError("no module")
"""


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two targets of a package, one of them without its runtime, and a package that is broken."""
    (tmp_path / "formats_of_a_test.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    places = {name: f"formats_of_a_test:{name.title()}" for name in ("own", "absent", "broken")}
    made = [EntryPoint(name, place, registry.GROUP) for name, place in places.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: made)
    yield
    sys.modules.pop("formats_of_a_test", None)


@pytest.mark.usefixtures("plug_ins")
def test_a_target_writes_its_own_suffix(tmp_path: Path) -> None:
    compressed = quantized(small(), {})
    for target in (None, {"runtime": "torch"}, {"runtime": "own"}):
        made = writer_of(Path("m.own"), target)(compressed, tmp_path / "m.own", images())
        assert made.path.read_text() == compressed.policy.digest + "cpu"
    assert export(small(), tmp_path / "n.own", example=images()).read_text().endswith("cpu")


@pytest.mark.usefixtures("plug_ins")
def test_the_file_is_the_one_that_the_study_measured() -> None:
    """Its target comes before autocompress, and autocompress before other targets."""
    own = writer_of(Path("m.onnx"), {"runtime": "own"})
    assert getattr(own, "__func__", None) is type(get_target("own")).export
    for target in (None, {"runtime": "torch"}):
        assert writer_of(Path("m.onnx"), target) is plain_export
    assert writer_of(Path("m.safetensors"), {"runtime": "own"}) is plain_export


@pytest.mark.usefixtures("plug_ins")
def test_what_nobody_writes_lists_what_is_written_here() -> None:
    with pytest.raises(
        InputError, match=r"\.onnx, \.pt2, \.safetensors(, \.pte)?, \.own"
    ) as raised:
        writer_of(Path("m.txt"))
    assert ".absent" not in str(raised.value)
    with pytest.raises(TargetUnavailable, match=r"not installed .* ask for it"):
        writer_of(Path("m.absent"))


def test_without_plug_ins_only_what_is_present_is_listed() -> None:
    with pytest.raises(InputError, match=r"end in \.onnx, \.pt2, \.safetensors(, \.pte)?; got"):
        writer_of(Path("m.own"))
