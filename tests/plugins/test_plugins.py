"""The example packages: installed, found by their entry points, and held to their contracts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import yaml
from measured_network import images, quantized, small

from autocompress.exporters.write import export

#: whole studies run in processes of their own, which may have to wait for a quiet machine
pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures" / "run_0_1"
DOCS = HERE.parent.parent / "docs" / "extending.md"

Called = Callable[..., str]


def test_a_target_from_outside(installed: Callable[[str], Called], tmp_path: Path) -> None:
    called = installed("target_numpy")
    rows = json.loads(called("-m", "autocompress", "targets", "--json"))["targets"]
    (row,) = [row for row in rows if row["runtime"] == "numpy"]
    assert row["available"]
    assert row["devices"] == ["cpu"]
    path = export(quantized(small(), {}), tmp_path / "small.onnx", images()).path
    found = json.loads(
        called("-m", "autocompress", "bench", str(path), "--target", "numpy", "--json")
    )
    assert found["facts"]["target"]["runtime"] == "numpy"
    assert found["latency_ms"] > 0
    told = called("-m", "pytest", "-q", "--rootdir", "package", "package/tests")
    assert " passed" in told
    assert " skipped" not in told


def test_a_format_of_its_own_is_written(installed: Callable[[str], Called], tmp_path: Path) -> None:
    """By ``apply`` and ``export``; a runtime of its own then opens the file."""
    called = installed("target_numpy")
    for name in ("recipe.yaml", "recipe.safetensors", "weights.safetensors"):
        shutil.copy(FIXTURES / name, tmp_path / name)
    recipe = tmp_path / "recipe.yaml"
    plain = yaml.safe_load(recipe.read_text())
    plain["study"]["model"]["checkpoint"] = str(tmp_path / "weights.safetensors")
    recipe.write_text(yaml.safe_dump(plain))
    files = [tmp_path / name for name in ("a.onnx", "a.textproto", "again.textproto")]
    for file in files[:2]:
        called("-m", "autocompress", "apply", str(recipe), "-o", str(file))
    called("-c", _EXPORT, str(recipe), str(files[2]))
    models = [onnx.load(file).graph for file in files]
    assert models[0] == models[1] == models[2]
    assert files[1].read_text().startswith("ir_version")
    again = called("-m", "autocompress", "bench", str(files[1]), "--target", "numpy", "--json")
    assert json.loads(again)["size_bytes"] == files[1].stat().st_size


_EXPORT = """
import sys
import autocompress
autocompress.export(autocompress.apply(sys.argv[1]), sys.argv[2])
"""

_SEARCH = """
import autocompress.controller.samplers as samplers
from autocompress.controller.loop import run_search
from autocompress.testing.sampler import ChainEvaluator, chain_study

study = chain_study(ChainEvaluator(4), trials=12)
run_search(study, samplers.make_proposer(study, "halton"))
print({t.origin for t in study.ledger.trials}, len(study.ledger.trials))
"""


def test_a_sampler_from_outside(installed: Callable[[str], Called]) -> None:
    called = installed("sampler_halton")
    assert called("-c", _SEARCH).startswith("{'halton'}")
    told = called("-m", "pytest", "-q", "--rootdir", "package", "package/tests")
    assert " passed" in told
    assert " skipped" not in told


@pytest.mark.parametrize(
    "file",
    [
        "target_numpy/autocompress_target_numpy.py",
        "sampler_halton/autocompress_sampler_halton.py",
        "technique_clusters/autocompress_technique_clusters.py",
        "technique_widths/autocompress_technique_widths.py",
    ],
)
def test_the_guide_shows_the_example_as_it_is(file: str) -> None:
    assert f"```python\n{(HERE / file).read_text(encoding='utf-8')}```" in DOCS.read_text(
        encoding="utf-8"
    )
