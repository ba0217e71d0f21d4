"""Smaller tables of rows: against singular values, by hand, in the file and in the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from small_networks import hook_macs
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.sequential import sequential_resolve
from autocompress.errors import PolicyError
from autocompress.exporters.write import export
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.task.data import Split
from autocompress.techniques.quantize import simulate
from autocompress.techniques.tables import smoothed, table_factors

SETTINGS = CompressionSettings(calibration_images=64, prune_residual=True)
WORDS, WIDTH = 200, 16
IDS = torch.randint(150, (64, 7), generator=torch.Generator().manual_seed(0)) ** 2 // 150
HALF = LayerPolicy(rank_ratio=0.5)


class Reader(nn.Module):
    """Rows of a table, mapped, their mean classified."""

    def __init__(self, table: nn.Module | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH) if table is None else table
        self.up, self.head = nn.Linear(WIDTH, 12), nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.words(ids)
        return self.head(F.relu(self.up(rows.mean(1) if rows.dim() == 3 else rows)))


class Speaker(nn.Module):
    """A table of words that is the weight of the last layer too."""

    def __init__(self, last: nn.Linear | None = None) -> None:
        super().__init__()
        self.words, self.up, self.down = (
            nn.Embedding(WORDS, WIDTH),
            nn.Linear(WIDTH, 32),
            nn.Linear(32, WIDTH),
        )
        self.last = nn.Linear(WIDTH, WORDS) if last is None else last
        self.last.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.words(ids)
        return self.last(rows + self.down(F.gelu(self.up(rows))))


class Scaled(nn.Embedding):
    """Rows times the root of their number, fixed when it is made, as in BART."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.factor = math.sqrt(sizes[1])

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.factor


class Normed(nn.Embedding):
    """Rows of length 1."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.normalize(super().forward(ids), dim=-1)


def made(model: Callable[..., nn.Module], *args: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return model(*args).eval()


def bank_of(model: nn.Module) -> LayerBank:
    inventory = take_inventory(model, IDS[:1])
    return LayerBank.build(model, inventory, Split(IDS, torch.arange(64) % 5), SETTINGS)


def answers(path: Path, inputs: Tensor) -> np.ndarray:
    options = ort.SessionOptions()
    # fused, products with small integers round their other side as well
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": inputs.numpy()})[0])


# ---- the factors


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_is_the_tail_of_numpys_singular_values(rank: int, weighted: bool) -> None:
    table, drawn = torch.randn(40, 8, dtype=torch.float64), torch.rand(40, dtype=torch.float64) ** 4
    shares = drawn / drawn.sum() if weighted else None
    small, back = table_factors(table, rank, shares)
    assert (small.shape, back.shape) == ((40, rank), (rank, 8))
    root = torch.ones(40, dtype=torch.float64) if shares is None else shares.sqrt()
    error = float((root[:, None] * (table - small @ back)).square().sum())
    tail = np.linalg.svd(root.numpy()[:, None] * table.numpy(), compute_uv=False)[rank:]
    assert error == pytest.approx(float((tail**2).sum()), rel=1e-6)


def test_no_factors_found_by_descent_are_better() -> None:
    torch.manual_seed(3)
    table, shares = torch.randn(12, 5), torch.rand(12)
    best = error_of(table, shares, *table_factors(table, 2, shares))
    for _ in range(5):
        small = torch.randn(12, 2, requires_grad=True)
        back = torch.randn(2, 5, requires_grad=True)
        optimizer = torch.optim.LBFGS([small, back], max_iter=300, line_search_fn="strong_wolfe")

        def closure(small: Tensor = small, back: Tensor = back) -> Tensor:
            small.grad = back.grad = None
            loss = (shares[:, None] * (table - small @ back).square()).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert best <= error_of(table, shares, small, back) * (1 + 1e-4)


def error_of(table: Tensor, shares: Tensor, small: Tensor, back: Tensor) -> float:
    return float((shares[:, None] * (table - small.detach() @ back.detach()).square()).sum())


def test_factors_of_full_rank_are_the_table() -> None:
    table = torch.randn(30, 6)
    inputs = torch.randn(50, 6)
    second = inputs.T @ inputs
    for moments in ((None,), (None, second)):
        small, back = table_factors(table, 6, torch.rand(30), moments)
        torch.testing.assert_close(small @ back, table, rtol=1e-4, atol=1e-4)


def test_a_table_of_several_holders_has_the_least_sum_of_relative_errors() -> None:
    """For rows, and for products with what a linear layer reads: one SVD of both side by side."""
    torch.manual_seed(1)
    table, shares = torch.randn(30, 6, dtype=torch.float64), torch.rand(30, dtype=torch.float64)
    inputs = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    second = inputs.T @ inputs / 200
    weighted = shares.sqrt()[:, None] * table
    root = torch.linalg.cholesky(second)
    sides = [weighted, weighted @ root]
    both = torch.cat([side / side.norm() for side in sides], 1)
    for rank in (1, 2, 4):
        small, back = table_factors(table, rank, shares, (None, second))
        rest = shares.sqrt()[:, None] * (table - small @ back)
        lost = zip((rest, rest @ root), sides, strict=True)
        found = sum(float((left.norm() / side.norm()) ** 2) for left, side in lost)
        tail = np.linalg.svd(both.numpy(), compute_uv=False)[rank:]
        assert found == pytest.approx(float((tail**2).sum()), rel=1e-6)


def test_rows_never_seen_share_what_good_and_turing_give_them() -> None:
    shares = smoothed(torch.tensor([6, 0, 1, 2, 0, 1]))
    assert float(shares.sum()) == pytest.approx(1)
    # two of ten reads were of rows seen once
    assert shares[[1, 4]].tolist() == pytest.approx([2 / 11 / 2] * 2)
    assert shares[[0, 2]].tolist() == pytest.approx([6 / 10 * 9 / 11, 1 / 10 * 9 / 11])
    assert smoothed(torch.tensor([3, 1])).tolist() == pytest.approx([0.75, 0.25])
    assert float(smoothed(torch.tensor([4, 4, 0]))[2]) == pytest.approx(1 / 9)


# ---- in a model


def test_rows_that_occur_err_less_than_by_factors_of_all_rows_alike() -> None:
    bank = bank_of(made(Reader))
    small = bank.stitch(Policy({"words": HALF})).module.words
    alike = torch.matmul(*table_factors(bank.model.words.weight, small[0].embedding_dim))
    with torch.no_grad():
        wanted = bank.model.words(IDS)
        errors = [float((f - wanted).square().sum()) for f in (small(IDS), alike[IDS])]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_macs_are_the_formula_and_no_more_than_before(ratio: float, tied: bool) -> None:
    bank = bank_of(made(Speaker) if tied else made(Reader))
    policy = Policy({"words": LayerPolicy(rank_ratio=ratio)})
    small, cost = bank.stitch(policy).module, policy_cost(bank.inventory, policy, SETTINGS)
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert cost.macs == sum(hook_macs(small, IDS).values())
    assert cost.params <= policy_cost(bank.inventory, Policy(), SETTINGS).params
    rank, edge = small.words[0].embedding_dim, WORDS * WIDTH / (WORDS + (1 + tied) * WIDTH)
    assert rank == max(1, int(ratio * edge))


def test_layers_that_hold_one_table_go_on_holding_one() -> None:
    bank = bank_of(made(Speaker))
    compressed = bank.stitch(Policy({"words": HALF}))
    words, last = compressed.module.words, compressed.module.last
    assert words[0].weight is last[1].weight
    assert torch.equal(words[1].weight, last[0].weight.T)
    assert torch.equal(last[1].bias, bank.model.last.bias)
    assert compressed.parts["last"] == ("last.0", "last.1")
    solved = sequential_resolve(bank.model, compressed, IDS).module
    assert solved.words[0].weight is solved.last[1].weight
    with pytest.raises(PolicyError, match="its weight is that of words"):
        bank.stitch(Policy({"last": HALF}))


class Doubled(nn.Linear):
    """Adds its inputs to its outputs' first places."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.pad(x, (0, WORDS - WIDTH))


def test_a_holder_that_cannot_be_divided_leaves_the_table_alone() -> None:
    spec = take_inventory(made(Speaker, Doubled(WIDTH, WORDS)), IDS[:1]).layer("words")
    assert "also that of last" in spec.why_not("low-rank")


BITS = [(32, 32), (8, 8), (8, 32), (32, 4)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model", [Reader, Speaker])
def test_the_file_computes_what_the_module_does_and_is_as_large_as_the_formula(
    model: type[nn.Module], bits: tuple[int, int], tmp_path: Path
) -> None:
    bank = bank_of(made(model))
    last = "last" if model is Speaker else "head"
    policy = Policy(
        {
            "words": LayerPolicy(rank_ratio=0.5, weight_bits=bits[0]),
            last: LayerPolicy(weight_bits=bits[1]),
        }
    )
    compressed = bank.stitch(policy)
    if compressed.quantized:
        compressed = calibrate(compressed, IDS)
    written = export(compressed, tmp_path / "m.onnx", IDS[:1])
    with torch.no_grad():
        wanted = (simulate(compressed) if compressed.quantized else compressed.module)(IDS).numpy()
    np.testing.assert_allclose(answers(written.path, IDS), wanted, rtol=1e-3, atol=1e-3)
    formula = policy_cost(bank.inventory, policy, SETTINGS).size_bytes
    assert abs(written.size_bytes - formula) < 4000
    sizes = [int(np.prod(t.dims)) for t in onnx.load(written.path).graph.initializer]
    rank = compressed.module.words[0].embedding_dim
    once = model is Reader or bits[0] == bits[1]
    packed = WORDS * 8  # bytes of a linear layer's rows in 4 bits, in one block of 16 inputs each
    assert rank <= 16
    assert sizes.count(WORDS * rank) + sizes.count(packed) == (1 if once else 2)
    assert WORDS * WIDTH not in sizes


@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_what_a_table_is_told_beside_its_sizes_stays(options: dict[str, Any]) -> None:
    bank = bank_of(made(Reader, nn.Embedding(WORDS, WIDTH, **options)))
    table = bank.stitch(Policy({"words": HALF})).module.words[0]
    assert isinstance(table, nn.Embedding)
    assert all(getattr(table, name) == value for name, value in options.items())
    if "padding_idx" in options:
        assert (table.weight[0] == 0).all()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_sums_and_means_of_rows_are_mapped_as_rows_are(mode: str) -> None:
    bank = bank_of(made(Reader, nn.EmbeddingBag(WORDS, WIDTH, mode=mode)))
    policy = Policy({"words": HALF})
    small = bank.stitch(policy).module
    table, back = small.words[0].weight, small.words[1].weight
    rows = (table @ back.T)[IDS].detach()
    wanted = rows.sum(1) if mode == "sum" else rows.mean(1)
    with torch.no_grad():
        torch.testing.assert_close(small.words(IDS), wanted, rtol=1e-4, atol=1e-4)
        if mode == "sum":
            shares = torch.rand(IDS.shape)
            torch.testing.assert_close(
                small.words(IDS, per_sample_weights=shares),
                (rows * shares[..., None]).sum(1),
                rtol=1e-4,
                atol=1e-4,
            )
    cost = policy_cost(bank.inventory, policy, SETTINGS)
    assert cost.macs == sum(hook_macs(small, IDS).values())


def test_a_subclass_that_scales_its_rows_is_factorized() -> None:
    bank = bank_of(made(Reader, made(Scaled, WORDS, WIDTH)))
    small = bank.stitch(Policy({"words": LayerPolicy(rank_ratio=1.0)})).module.words
    assert isinstance(small[0], Scaled)
    rows = (small[0].weight @ small[1].weight.T)[IDS] * 4
    torch.testing.assert_close(small(IDS), rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (lambda: nn.Embedding(WORDS, WIDTH, max_norm=1.0), "max_norm"),
        (lambda: nn.EmbeddingBag(WORDS, WIDTH, mode="max"), "largest"),
        (lambda: Normed(WORDS, WIDTH), "does more than pick rows"),
    ],
)
def test_what_is_no_product_is_left_alone(table: Callable[[], nn.Module], reason: str) -> None:
    spec = take_inventory(made(Reader, made(table)), IDS[:1]).layer("words")
    assert reason in spec.why_not("low-rank")


class Stream(nn.Module):
    """A residual stream from a table to the layer that holds it too; it may lose channels."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH)
        if tied:
            self.last.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.words(ids)
        return self.last(rows + F.relu(self.mix(rows)))


@pytest.mark.parametrize("tied", [False, True])
def test_a_pruned_table_has_factors_of_what_is_left(tied: bool) -> None:
    bank = bank_of(made(Stream, tied))
    groups = [g for g in bank.inventory.channel_groups if "mix" in g.producers]
    names = groups[0].producers if groups else ()
    for ratio, rank in pairwise([0.25, 0.5, 0.5, 0.25]):
        policy = Policy(
            {
                **dict.fromkeys(names, LayerPolicy(prune_ratio=ratio)),
                "words": LayerPolicy(prune_ratio=ratio if "words" in names else 0, rank_ratio=rank),
            }
        )
        small = bank.stitch(policy).module
        with torch.no_grad():
            assert small(IDS).shape == (64, 7, WORDS)
        cost = policy_cost(bank.inventory, policy, SETTINGS)
        assert cost.params == sum(p.numel() for p in small.parameters())
        assert cost.macs == sum(hook_macs(small, IDS[:1]).values())


# ---- in a search


def test_a_table_is_searched_where_it_is_large_or_named() -> None:
    rule = {"rank_ratio": [None, 0.5]}

    def names(words: int, **more: Any) -> set[str]:
        model = made(Reader, nn.Embedding(words, WIDTH))
        inventory = take_inventory(model, IDS[:1] % words)
        return {c.name for c in SpaceConfig.read({"rules": [rule | more]}).bind(inventory).choices}

    assert "words/rank_ratio" in names(50)  # 800 of some 1,070 weights
    assert "words/rank_ratio" not in names(1)  # 16 of 285
    assert "words/rank_ratio" in names(1, match="words", exclude="up")
    assert "words/rank_ratio" in names(1, kinds="embedding")
    tied = take_inventory(made(Speaker), IDS[:1])
    assert "words/rank_ratio" in {
        c.name for c in SpaceConfig.read({"rules": [rule]}).bind(tied).choices
    }
