"""One parameter in several layers: counted once, kept as one, solved for all who read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.sequential import sequential_resolve
from autocompress.build.solve import solve_without
from autocompress.errors import PolicyError
from autocompress.exporters.write import export
from autocompress.model.cost import CONTAINER_BYTES, policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.slicing import remove
from autocompress.model.tied import shared_parameters
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split
from autocompress.techniques.moments import input_moments
from autocompress.techniques.quantize import simulate

SETTINGS = CompressionSettings(calibration_images=64, ridge=1e-9)
ROWS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(200, (64, 7), generator=torch.Generator().manual_seed(0))
GONE = [0, 3, 5]


class Siamese(nn.Module):
    """Two linear layers of one weight read two streams; their bias is one, two, or none."""

    def __init__(self, bias: str = "one") -> None:
        super().__init__()
        self.p, self.q = nn.Linear(6, 8), nn.Linear(6, 8)
        self.a, self.b = (nn.Linear(8, 12, bias=bias != "none") for _ in range(2))
        self.b.weight = self.a.weight
        if bias == "one":
            self.b.bias = self.a.bias
        self.h = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(F.relu(self.p(x))), self.b(F.relu(self.q(x) + 1))
        return self.h(F.relu(torch.cat([left, right], 1)))


class LanguageModel(nn.Module):
    """A table of words that is the head's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.up, self.down = nn.Embedding(200, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 200, bias=False)
        self.head.weight = self.e.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.e(ids)
        return self.head(h + self.down(F.gelu(self.up(h))))


def made(kind: type[nn.Module], **options: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind(**options).eval()


def bank_of(model: nn.Module, inputs: Tensor) -> LayerBank:
    inventory = take_inventory(model, inputs[:1])
    return LayerBank.build(model, inventory, Split(inputs, torch.arange(64) % 5), SETTINGS)


@pytest.mark.parametrize("bias", ["one", "two", "none"])
def test_params_and_bytes_count_once(bias: str) -> None:
    model = made(Siamese, bias=bias)
    inventory = take_inventory(model, ROWS[:1])
    assert inventory.layer("b").tied_to == "a"
    cost = policy_cost(inventory, Policy(), SETTINGS)
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.size_bytes == CONTAINER_BYTES + 4 * cost.params
    apart = Policy({"b": LayerPolicy(weight_bits=8)})
    assert policy_cost(inventory, apart, SETTINGS).params == cost.params + 8 * 12
    assert inventory.macs == 2 * 6 * 8 + 2 * 8 * 12 + 24 * 5


@pytest.mark.parametrize("bias", ["one", "two", "none"])
def test_one_solution_for_both_streams_is_the_least_squares_of_numpy(bias: str) -> None:
    model = made(Siamese, bias=bias)
    moments = input_moments(model, ["a", "b"], ROWS)
    shared = shared_parameters(model)
    found = [solve_without(model, moments, shared, n, GONE, 1e-9) for n in ("a", "b")]
    assert torch.equal(found[0][0], found[1][0])
    kept = [i for i in range(8) if i not in GONE]
    with torch.no_grad():
        streams = [F.relu(model.p(ROWS)), F.relu(model.q(ROWS) + 1)]
        goals = torch.cat([model.a(streams[0]), model.b(streams[1])]).double().numpy()
    left = torch.cat(streams)[:, kept].double()
    ones, zeros = torch.ones(64, 1).double(), torch.zeros(64, 1).double()
    columns = {
        "one": [torch.cat([ones, ones])],
        "two": [torch.cat([ones, zeros]), torch.cat([zeros, ones])],
        "none": [],
    }[bias]
    design = torch.cat([left, *columns], 1).numpy()
    wanted = np.linalg.lstsq(design, goals, rcond=None)[0]
    np.testing.assert_allclose(found[0][0][:, kept].T, wanted[: len(kept)], rtol=1e-3, atol=1e-4)
    assert (found[0][0][:, GONE] == 0).all()
    for place, (_, own) in enumerate(found):
        if own is not None:
            row = len(kept) + (place if bias == "two" else 0)
            np.testing.assert_allclose(own, wanted[row], rtol=1e-3, atol=1e-4)


def test_a_sparse_weight_is_still_one() -> None:
    bank = bank_of(made(Siamese), ROWS)
    small = bank.stitch(Policy({"a": LayerPolicy(sparsity=0.5)})).module
    assert small.b.weight is small.a.weight
    assert int((small.b.weight == 0).sum()) == 48
    with pytest.raises(PolicyError, match="its zeros are those of a"):
        bank.stitch(Policy({"b": LayerPolicy(sparsity=0.5)}))


def test_the_sequential_solution_leaves_a_shared_weight_to_the_bank() -> None:
    bank = bank_of(made(Siamese), ROWS)
    before = bank.stitch(Policy())
    small = before.module
    sides = (("p", "out"), ("q", "out"), ("a", "in"), ("b", "in"))
    remove(small, dict.fromkeys(sides, GONE))
    small.b.weight = small.a.weight
    weight, head = small.a.weight.detach().clone(), small.h.weight.detach().clone()
    after = sequential_resolve(bank.model, before, ROWS).module
    assert torch.equal(after.a.weight, weight)
    assert after.b.weight is after.a.weight
    assert not torch.equal(after.h.weight, head)


def test_a_tied_weight_has_no_factors_of_its_own() -> None:
    bank = bank_of(made(Siamese), ROWS)
    for name, other in (("a", "b"), ("b", "a")):
        with pytest.raises(PolicyError, match=f"its weight is (also )?that of {other}"):
            bank.stitch(Policy({name: LayerPolicy(rank_ratio=0.5)}))


@pytest.mark.parametrize("bits", [(32, 32), (8, 8), (8, 32), (32, 4)])
def test_a_file_holds_a_tied_table_once_where_it_can(bits: tuple[int, int], tmp_path: Path) -> None:
    model = made(LanguageModel)
    bank = bank_of(model, IDS)
    policy = Policy(
        {n: LayerPolicy(weight_bits=b) for n, b in zip(("e", "head"), bits, strict=True) if b < 32}
    )
    compressed = bank.stitch(policy)
    assert compressed.module.head.weight is compressed.module.e.weight
    if compressed.quantized:
        compressed = calibrate(compressed, IDS)
    written = export(compressed, tmp_path / "m.onnx", IDS[:1])
    options = ort.SessionOptions()
    # fused, products with small integers round their other side as well
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(written.path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": IDS.numpy()})
    with torch.no_grad():
        wanted = (simulate(compressed) if compressed.quantized else compressed.module)(IDS).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    formula = policy_cost(bank.inventory, policy, SETTINGS).size_bytes
    assert abs(written.size_bytes - formula) < 4000
    with torch.no_grad():
        assert torch.equal(bank.model(IDS), model(IDS))


def test_biases_that_are_one_are_each_corrected_once() -> None:
    bank = bank_of(made(Siamese), ROWS)
    own = LayerPolicy(weight_bits=3)
    made_low = calibrate(bank.stitch(Policy({"a": own, "b": own})), ROWS)
    folded = made_low.folded
    assert folded is not None
    streams = {"a": F.relu(bank.model.p(ROWS)), "b": F.relu(bank.model.q(ROWS) + 1)}
    with torch.no_grad():
        for name, stream in streams.items():
            real = bank.model.get_submodule(name)(stream).mean(0)
            found = simulate(made_low).get_submodule(name)(stream).mean(0)
            torch.testing.assert_close(found, real, rtol=1e-3, atol=1e-3)
