"""What every target keeps to.

In a test file of its own package an author writes::

    class TestMine(TargetContract):
        config = "mine"
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.calibrate import calibrate
from autocompress.errors import InputError
from autocompress.exporters.onnx_kernels import PRODUCTS, write_largest_products
from autocompress.measure.gate import inspect_file, layer_profile
from autocompress.measure.latency import paired_timing
from autocompress.measure.memory import peak_memory_bytes
from autocompress.measure.sampling import Plan
from autocompress.model.kernels import Kernel
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import (
    KernelClass,
    Session,
    Target,
    TargetConfig,
    available_targets,
    get_target,
    read_config,
    registry,
)
from autocompress.targets.base import random_inputs
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.quantize import simulate

LAYERS = ("first", "block.deep", "block.wide", "head")


class Network(nn.Module):
    """A convolution, a depthwise and a pointwise one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential()
        self.block.add_module("deep", nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.block.add_module("relu", nn.ReLU())
        self.block.add_module("wide", nn.Conv2d(8, 12, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, 3, 8, 8)`` to ``(batch, 5)``."""
        x = self.block(F.relu(self.first(x)))
        answer: Tensor = self.head(F.relu(x).mean((2, 3)))
        return answer


@dataclass(frozen=True)
class Exported:
    """A model and the file that the target made of it."""

    compressed: Compressed
    path: Path

    def wanted(self, x: Any) -> Any:
        """What the model answers, its rounding simulated."""
        with torch.inference_mode():
            return simulate(self.compressed)(torch.from_numpy(x)).numpy()


#: written once for all tests of a config
_FILES: dict[tuple[TargetConfig, Precision], Exported] = {}


def _export(target: Target, precision: Precision, folders: pytest.TempPathFactory) -> Exported:
    """Let the target write the network with a precision of all layers."""
    key = (target.config, precision)
    if key not in _FILES:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            network, images = Network().eval(), torch.randn(32, 3, 8, 8)
        changed = dict.fromkeys(LAYERS, precision) if precision != Precision() else {}
        layer = LayerPolicy(
            weight_bits=precision.weight_bits,
            activation_bits=precision.activation_bits,
            weight_block=precision.block,
        )
        policy = Policy(dict.fromkeys(changed, layer))
        compressed = Compressed(network, policy, CompressionSettings(), precisions=changed)
        if changed:
            compressed = calibrate(compressed, images)
        path = folders.mktemp("contract") / f"small{target.suffix}"
        written = target.export(compressed, path, images[:1])
        assert written.path == path
        assert written.size_bytes == path.stat().st_size > 0
        _FILES[key] = Exported(compressed, path)
    return _FILES[key]


class TargetContract:
    """Tests of one target; skipped with the reason where its runtime is not present.

    Attributes:
        config: as a study's ``target:`` has it, or only the runtime's name.
        threads: counts that the runtime can be asked for.
        tolerance: largest difference between the outputs of file and module.
    """

    config: ClassVar[str | Mapping[str, Any]]
    threads: ClassVar[tuple[int, ...]] = (1, 2)
    tolerance: ClassVar[float] = 1e-5

    @pytest.fixture(autouse=True)
    def _own_lock(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tests neither wait for other work on this machine nor keep it waiting."""
        folder = tmp_path_factory.getbasetemp() / "lock"
        monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(folder))

    @pytest.fixture
    def target(self) -> Target:
        """The target with the class's config."""
        config = read_config(self._plain)
        found = registry.load(config.runtime).availability()
        if not found.available:
            pytest.skip(f"{config.runtime}: {found.reason}")
        return get_target(config)

    @pytest.fixture
    def exported(self, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Exported:
        """The float network as a file."""
        return _export(target, Precision(), tmp_path_factory)

    @pytest.fixture
    def integer(self, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Exported:
        """The network with all layers in 8 bits as a file."""
        return _export(target, Precision(8, 8), tmp_path_factory)

    @property
    def _plain(self) -> Mapping[str, Any]:
        return {"runtime": self.config} if isinstance(self.config, str) else self.config

    def asked(self, **changed: Any) -> Target:
        """The same target with other fields in its config."""
        return get_target({**self._plain, **changed})

    def _same(self, session: Session, exported: Exported, batch: int, seed: int = 7) -> None:
        (x,) = random_inputs(session.inputs, batch, seed)
        (found,) = session.run([x])
        assert x.shape == (batch, 3, 8, 8)
        assert found.shape == (batch, 5)
        np.testing.assert_allclose(found, exported.wanted(x), atol=self.tolerance)

    def test_it_is_found_by_its_name(self, target: Target) -> None:
        """One row of ``autocompress targets``, with a version and devices."""
        (row,) = [row for row in available_targets() if row.runtime == target.name]
        assert row.version
        assert row.devices
        assert not row.reason
        json.dumps(row.as_dict())
        assert type(get_target({**self._plain, "runtime": target.name})) is type(target)

    def test_its_config_is_plain_data(self, target: Target) -> None:
        """It goes through JSON and through pickle, as into other processes."""
        config = target.config
        assert type(config) is target.config_model
        assert config.runtime == target.name
        assert read_config(json.loads(config.model_dump_json())) == config
        assert pickle.loads(pickle.dumps(config)) == config

    def test_a_wrong_config_is_an_input_error(self, target: Target) -> None:
        """The nearest key is named; devices that are not here are not taken for others."""
        with pytest.raises(InputError, match="'threads'"):
            self.asked(thread=1)
        with pytest.raises(InputError, match="threads"):
            self.asked(threads=0)
        with pytest.raises(InputError, match="abacus"):
            self.asked(device="abacus")

    def test_it_computes_what_the_module_computes(self, target: Target, exported: Exported) -> None:
        """Of one sample, the shape that latency is measured with."""
        with closing(target.open(exported.path)) as session:
            self._same(session, exported, target.config.batch)

    def test_it_takes_any_number_of_samples(self, target: Target, exported: Exported) -> None:
        """Accuracy is judged in big batches; a fixed batch is that of the config."""
        for batch in (1, 3):
            where = target if target.free_batch else self.asked(batch=batch)
            with closing(where.open(exported.path, fixed=False)) as session:
                self._same(session, exported, batch)

    def test_the_batch_of_the_config_is_settled(self, target: Target, exported: Exported) -> None:
        """The file then takes exactly so many."""
        with closing(self.asked(batch=4).open(exported.path)) as session:
            assert session.inputs[0].shape == (4, 3, 8, 8)
            assert session.inputs[0].dtype == "float32"
            self._same(session, exported, 4)

    def test_results_stay_when_the_session_runs_again(
        self, target: Target, exported: Exported
    ) -> None:
        """Outputs are the caller's own arrays, and equal inputs give equal outputs."""
        with closing(target.open(exported.path)) as session:
            one, two = (random_inputs(session.inputs, target.config.batch, s) for s in (1, 2))
            (first,) = session.run(one)
            kept = first.copy()
            session.run(two)
            (again,) = session.run(one)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(first, again)

    def test_a_prepared_call_runs_as_often_as_asked(
        self, target: Target, exported: Exported
    ) -> None:
        """It is what gets timed."""
        with closing(target.open(exported.path)) as session:
            call = session.prepare(random_inputs(session.inputs, target.config.batch))
            assert call() is not None
            assert call() is not None
            self._same(session, exported, target.config.batch)

    def test_a_profile_names_layers_and_kernels(self, target: Target, exported: Exported) -> None:
        """Every layer's multiplications are found, unless the runtime fuses layers."""
        with closing(target.open(exported.path)) as session:
            profile = session.profile(random_inputs(session.inputs, target.config.batch), runs=3)
        assert profile.nodes
        assert profile.total_ms > 0
        assert all(not node.ms < 0 for node in profile.nodes)
        assert sum(ms for _, ms in profile.by_op().values()) > 0
        kinds = [target.classify(node) for node in profile.nodes]
        assert KernelClass.INTEGER not in kinds
        if KernelClass.FUSED in kinds:
            return
        named = layer_profile(profile, LAYERS)
        assert set(LAYERS) <= set(named)
        for layer in LAYERS:
            assert KernelClass.FLOAT in [target.classify(node) for node in named[layer]], layer

    def test_the_gate_finds_nothing_in_a_float_file(
        self, target: Target, exported: Exported
    ) -> None:
        """The shapes that a profile shows are those of the layers."""
        assert inspect_file(target, exported.path, exported.compressed).problems == ()

    def test_layers_of_8_bits_keep_their_predictions(
        self, target: Target, integer: Exported
    ) -> None:
        """Integer kernels show where the target claims them, and are missed where it does not."""
        where = target if target.free_batch else self.asked(batch=60)
        with closing(where.open(integer.path, fixed=False)) as session:
            (x,) = random_inputs(session.inputs, 60)
            (found,) = session.run([x])
        assert np.mean(found.argmax(-1) == integer.wanted(x).argmax(-1)) >= 0.9
        problems = inspect_file(target, integer.path, integer.compressed).problems
        if target.integer_kernels:
            assert problems == ()
        else:
            assert "8-bit arithmetic" in problems[0]

    def test_single_layers_can_be_timed(self, target: Target, tmp_path: Path) -> None:
        """For the latency model, where the target has a writer for them."""
        writer = target.kernel_writer()
        kernels = [
            Kernel("conv", 4, 8, (3, 3), (1, 1), 1, (6, 6)),
            Kernel("linear", 16, 8, size=(1,)),
        ]
        if writer is None:
            return
        path = writer(kernels, tmp_path / f"kernels{target.suffix}", target.config.batch)
        with closing(target.open(path)) as session:
            profile = session.profile(random_inputs(session.inputs), runs=3)
        times = target.kernel_times(profile, len(kernels))
        assert all(ms >= 0 for ms in times)

    def test_products_that_overflow_are_told(self, target: Target, tmp_path: Path) -> None:
        """Of a target of ONNX files: the largest 8-bit products, beside their exact sum."""
        if ".onnx" not in (target.suffix, *target.also_opens):
            return
        path = write_largest_products(tmp_path / "largest.onnx")
        with closing(target.open(path)) as session:
            (found,) = session.run([np.ones((1, PRODUCTS), np.float32)])
        exact = np.allclose(found, PRODUCTS, rtol=0.01)
        assert target.products_overflow() == (not exact)

    def test_threads_are_those_that_were_asked_for(
        self, target: Target, exported: Exported
    ) -> None:
        """By the config, or in its place by ``open``; torch's own setting stays."""
        before = torch.get_num_threads()
        for threads in self.threads:
            where = self.asked(threads=threads)
            assert where.describe()["threads"] == threads
            for session in (
                where.open(exported.path),
                self.asked(threads=self.threads[0]).open(exported.path, threads=threads),
            ):
                with closing(session):
                    session.run(random_inputs(session.inputs, target.config.batch))
                    assert session.threads == threads
        assert torch.get_num_threads() == before

    def test_a_record_tells_where_it_was_measured(self, target: Target) -> None:
        """As plain data."""
        told = target.describe()
        assert json.loads(json.dumps(told)) == told
        config = target.config
        assert told["runtime"] == target.name
        assert told["version"] == type(target).availability().version
        for key in ("device", "threads", "batch"):
            assert told[key] == getattr(config, key)

    def test_what_cannot_be_opened_is_an_input_error(self, target: Target, tmp_path: Path) -> None:
        """No file, a file of another kind, and a broken one."""
        with pytest.raises(InputError, match="no model file"):
            target.open(tmp_path / f"absent{target.suffix}")
        wrong = tmp_path / "model.bin"
        wrong.write_bytes(b"x")
        with pytest.raises(InputError, match=target.suffix):
            target.open(wrong)
        broken = tmp_path / f"broken{target.suffix}"
        broken.write_bytes(b"not a model at all")
        with pytest.raises(InputError, match="broken"):
            target.open(broken)

    def test_wrong_inputs_are_an_input_error(self, target: Target, exported: Exported) -> None:
        """Too many of them, or of another shape."""
        with closing(target.open(exported.path)) as session:
            inputs = random_inputs(session.inputs, target.config.batch)
            with pytest.raises(InputError, match="takes 1 inputs, got 2"):
                session.run([*inputs, *inputs])
            with pytest.raises(InputError, match=r"shape .*got"):
                session.prepare([inputs[0][..., 1:]])

    def test_it_can_be_closed_twice(self, target: Target, exported: Exported) -> None:
        """And opened again afterwards."""
        session = target.open(exported.path)
        session.close()
        session.close()
        with closing(target.open(exported.path)) as again:
            self._same(again, exported, target.config.batch)

    def test_it_can_be_timed_beside_itself(self, target: Target, exported: Exported) -> None:
        """Two sessions of a file alternate, and the ratio lies in its interval."""
        plan = Plan(max_seconds=1.0, apart_s=0.0)
        found = paired_timing(target, exported.path, exported.path, plan=plan)
        assert found.latency_ms > 0
        assert 0 < found.ratio_low <= found.ratio <= found.ratio_high

    def test_another_process_opens_it(self, target: Target, exported: Exported) -> None:
        """With nothing but the config and the file, as for the peak memory."""
        found = peak_memory_bytes(target, exported.path)
        assert found is None or found >= 0
