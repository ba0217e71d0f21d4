"""The packed runner in a process of its own that can import numpy and onnxruntime only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from measured_network import images, quantized, small
from torch import nn

import autocompress
from autocompress.errors import ExportError, InputError
from autocompress.estimate.kernel_table import parse_key
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import choose_variants
from autocompress.estimate.other_device import device_model
from autocompress.estimate.pack import pack_kernels
from autocompress.exporters.onnx_kernels import write_kernels
from autocompress.exporters.write import export
from autocompress.machine.facts import machine_facts
from autocompress.machine.runner_files import RUNNER
from autocompress.measure.rounds import quiet_rounds
from autocompress.model.kernels import Kernel
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.targets import get_target
from autocompress.targets.base import KernelWriter
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget
from autocompress.techniques.compressed import Precision

#: what a bare environment with the two packages holds, beside the standard library and the archive
_ALLOWED = (
    "numpy",
    "onnxruntime",
    "flatbuffers",
    "google",
    "packaging",
    "coloredlogs",
    "humanfriendly",
)
_GUARD = """
import importlib.machinery, os, runpy, sys
folder = os.path.dirname({runner!r})
allowed = {allowed!r} + tuple(sys.stdlib_module_names)
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "autocompress":
            found = importlib.machinery.PathFinder.find_spec(name, path)
            if found is None or not (found.origin or "").startswith(folder):
                raise ImportError("not in the archive: " + name)
        elif name.partition(".")[0] not in allowed:
            raise ImportError("not in a bare environment: " + name)
sys.meta_path.insert(0, Guard())
sys.argv = [{runner!r}, *{arguments!r}]
runpy.run_path({runner!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def space(inventory: Inventory) -> Space:
    rules = {
        "match": "*",
        "prune_ratio": [0, 0.5],
        "weight_bits": [32, 8],
        "activation_bits": [32, 8],
    }
    return SpaceConfig.read({"rules": [rules]}).bind(inventory)


@pytest.fixture(scope="module")
def packed(
    tmp_path_factory: pytest.TempPathFactory, inventory: Inventory, space: Space, network: nn.Module
) -> Path:
    folder = tmp_path_factory.mktemp("packed")

    def variant(policy: Policy) -> Path:
        width = 4 if policy["first"].prune_ratio else 8
        precisions = {
            n: Precision.of(p, CompressionSettings())
            for n, p in policy.layers.items()
            if p.weight_bits == 8
        }
        path = folder / f"{policy.digest[:8]}.onnx"
        return export(quantized(small(width), precisions), path, images()).path

    baseline = export(quantized(network, {}), folder / "base.onnx", images()).path
    path = pack_kernels(
        folder / "kernels.zip",
        inventory,
        space,
        get_target({"threads": 1, "batch": 1}),
        variant,
        baseline,
        variants=4,
    )
    assert sorted(p.name for p in folder.iterdir()) == ["base.onnx", "kernels.zip"]
    return path


def run_isolated(python: str, folder: Path, *arguments: str, guarded: bool) -> dict[str, object]:
    runner = str(folder / RUNNER)
    code = _GUARD.format(allowed=_ALLOWED, runner=runner, arguments=list(arguments))
    command = [python, "-I", "-c", code] if guarded else [python, "-I", runner, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    table: dict[str, object] = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    return table


def unpack(packed: Path, folder: Path) -> Path:
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    return folder


def check_table(table: dict[str, object], inventory: Inventory, space: Space, path: Path) -> None:
    kernels = table["kernels"]
    assert isinstance(kernels, dict)
    plan = LayerPlan(inventory, CompressionSettings())
    chosen = choose_variants(space, 4)
    wanted = {k.key for k in [*plan.space_kernels(space), *plan.kernels([Policy(), *chosen])]}
    assert set(kernels) == wanted
    assert all(ms > 0 for ms in kernels.values())
    assert {parse_key(key).precision for key in kernels} == {"fp32", "int8"}
    models = table["models"]
    assert isinstance(models, list)
    assert [Policy.from_dict(m["policy"]).digest for m in models] == [p.digest for p in chosen]
    model = device_model(path, inventory, None, path.parent / "cache")
    assert model.baseline_ms == table["baseline_ms"]
    for policy in (Policy(), *chosen):
        ms, sigma = model.predict(policy)
        assert ms > 0
        assert sigma > 0


def test_rounds_of_a_disturbed_device_do_not_count() -> None:
    """Two thirds of the rounds lie in spells: float 1.4, integer 1.75 times as long."""
    rng = np.random.default_rng(0)
    loud = (np.arange(300) // 50) % 3 != 0
    slow = np.where(loud[:, None], [1.4, 1.75], 1.0)
    rounds = np.array([0.69, 0.37]) * slow * rng.normal(1, 0.02, (300, 2))
    kept = rounds[quiet_rounds([rounds[:, 0]])]
    assert np.median(rounds[:, 1] / rounds[:, 0]) > 0.63
    assert np.median(kept[:, 1] / kept[:, 0]) == pytest.approx(0.37 / 0.69, rel=0.01)
    assert 90 <= len(kept) <= 110
    steady = np.array([0.69, 0.37]) * rng.normal(1, 0.02, (300, 2))
    assert quiet_rounds([steady[:, 0]]).all()


def test_the_runner_needs_numpy_and_onnxruntime_only(
    packed: Path, tmp_path: Path, inventory: Inventory, space: Space
) -> None:
    folder = unpack(packed, tmp_path / "device")
    table = run_isolated(sys.executable, folder, "--seconds", "0.1", "--runs", "2", guarded=True)
    check_table(table, inventory, space, folder / "table.json")
    facts = table["facts"]
    assert isinstance(facts, dict)
    assert facts["target"]["threads"] == 1
    assert table["architecture"] == inventory.architecture
    assert not list(folder.glob("*.part"))
    assert facts["machine"]["cpu"] == machine_facts()["cpu"]
    shared = [p for p in (folder / "autocompress").rglob("*.py") if p.stat().st_size]
    package = Path(autocompress.__file__).parent
    for file in shared:
        ours = package / file.relative_to(folder / "autocompress")
        assert file.read_bytes() == ours.read_bytes()
    assert {"rounds.py", "quiet.py", "sampling.py", "onnx_session.py"} <= {p.name for p in shared}


def test_the_guard_of_these_tests_does_keep_other_packages_out(tmp_path: Path) -> None:
    (tmp_path / RUNNER).write_text("import torch\n")
    with pytest.raises(AssertionError, match="not in a bare environment: torch"):
        run_isolated(sys.executable, tmp_path, guarded=True)
    installed = str(Path(autocompress.__file__).parents[1])
    ours = f"import sys; sys.path.append({installed!r}); import autocompress.measure.rounds"
    (tmp_path / RUNNER).write_text(ours)
    with pytest.raises(AssertionError, match="not in the archive: autocompress"):
        run_isolated(sys.executable, tmp_path, guarded=True)


def test_threads_of_the_device_can_be_chosen(packed: Path, tmp_path: Path) -> None:
    folder = unpack(packed, tmp_path / "device")
    table = run_isolated(
        sys.executable, folder, "--threads", "2", "--seconds", "0.1", "--runs", "1", guarded=False
    )
    facts = table["facts"]
    assert isinstance(facts, dict)
    assert facts["target"]["threads"] == 2


@pytest.mark.slow
def test_the_runner_works_in_a_bare_environment(
    packed: Path, tmp_path: Path, inventory: Inventory, space: Space
) -> None:
    """A new virtual environment with the two packages and nothing of ours."""
    import venv

    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "onnxruntime"], check=True)
    for name in ("autocompress", "torch", "onnx"):
        found = subprocess.run([python, "-I", "-c", f"import {name}"], capture_output=True)
        assert found.returncode != 0
    folder = unpack(packed, tmp_path / "device")
    table = run_isolated(python, folder, "--seconds", "0.5", guarded=False)
    check_table(table, inventory, space, folder / "table.json")


def test_what_cannot_be_packed_is_said(
    tmp_path: Path, inventory: Inventory, space: Space, exported: dict[str, Path]
) -> None:
    def variant(policy: Policy) -> Path:
        raise AssertionError("nothing is exported before the path and the runtime are checked")

    base = exported[".onnx"]
    with pytest.raises(InputError, match=r"\.zip"):
        pack_kernels(tmp_path / "k.tar", inventory, space, get_target("onnxruntime"), variant, base)
    torch = get_target("torch")
    with pytest.raises(InputError, match="ONNX Runtime"):
        pack_kernels(tmp_path / "k.zip", inventory, space, torch, variant, base)


def test_a_target_says_whether_it_can_be_packed(
    tmp_path: Path, inventory: Inventory, space: Space, exported: dict[str, Path]
) -> None:
    """By whatever name it goes, with kernels that it writes itself."""
    written: list[int] = []

    class Own(OnnxRuntimeTarget):
        name = "own"

        def kernel_writer(self) -> KernelWriter | None:
            def write(kernels: Sequence[Kernel], path: str | Path, batch: int) -> Path:
                written.append(len(kernels))
                return write_kernels(kernels, path, batch)

            return write

    target = Own(OnnxRuntimeTarget.config_model(runtime="own"))

    def variant(policy: Policy) -> Path:
        return Path(shutil.copyfile(exported[".onnx"], tmp_path / f"{policy.digest[:8]}.onnx"))

    where = tmp_path / "k.zip"
    pack_kernels(where, inventory, space, target, variant, exported[".onnx"], variants=1)
    with zipfile.ZipFile(where) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert [len(one["keys"]) for one in manifest["kernels"]] == written


def test_a_failed_packing_leaves_no_file(
    tmp_path: Path, inventory: Inventory, space: Space, exported: dict[str, Path]
) -> None:
    def variant(policy: Policy) -> Path:
        raise RuntimeError("cannot export")

    with pytest.raises(ExportError, match="cannot export"):
        pack_kernels(
            tmp_path / "k.zip",
            inventory,
            space,
            get_target("onnxruntime"),
            variant,
            exported[".onnx"],
        )
    assert list(tmp_path.iterdir()) == []
