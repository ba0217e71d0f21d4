"""The example packages: installed, found by their entry points, and held to their contracts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from measured_network import images, quantized, small

from autocompress.exporters.write import export

#: whole studies run in processes of their own, which may have to wait for a quiet machine
pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).parent
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
    ],
)
def test_the_guide_shows_the_example_as_it_is(file: str) -> None:
    assert f"```python\n{(HERE / file).read_text(encoding='utf-8')}```" in DOCS.read_text(
        encoding="utf-8"
    )
