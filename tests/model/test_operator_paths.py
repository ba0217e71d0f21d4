"""Who works for whom among the operators of a run, beside removing edges and looking again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.model.blocks import Finder
from autocompress.model.operator_paths import ForwardPass, Operator, Paths
from autocompress.model.sources import layer_sources
from autocompress.policy.inventory import OUTSIDE, LayerSpec


@st.composite
def runs(draw: st.DrawFn) -> ForwardPass:
    """Operators that read a few of those before them, some of them on integers."""
    count = draw(st.integers(2, 14))
    operators = []
    for i in range(count):
        reads = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        floating = draw(st.integers(0, 5)) > 0
        operators.append(Operator("relu", tuple(reads), (), floating=floating))
    outputs = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2))
    return ForwardPass(operators, tuple(outputs))


def behind(edges: Mapping[int, Collection[int]], begin: Iterable[int]) -> set[int]:
    """What is reached along edges, begin included."""
    found: set[int] = set()
    for number in begin:
        found |= {number} | behind(edges, edges[number])
    return found


@given(runs())
def test_what_works_for_one_reader_alone_is_lost_with_what_it_reads(run: ForwardPass) -> None:
    paths = Paths(run, [False] * len(run.operators))
    edges = {i: operator.reads for i, operator in enumerate(run.operators)}
    assert paths.live == behind(edges, run.outputs)
    for reader in paths.live:
        for operand in edges[reader]:
            without = {**edges, reader: [n for n in edges[reader] if n != operand]}
            assert paths.only_for(operand) == paths.live - behind(without, run.outputs)


@given(runs(), st.data())
def test_a_shared_source_is_one_that_both_sides_come_from(
    run: ForwardPass, data: st.DataObject
) -> None:
    numbers = st.integers(0, len(run.operators) - 1)
    layered = data.draw(st.lists(st.booleans(), min_size=14, max_size=14))[: len(run.operators)]
    entries = data.draw(st.sets(numbers, max_size=3))
    stream, through = data.draw(numbers), data.draw(st.sets(numbers))

    def edges(passed: Collection[int]) -> dict[int, list[int]]:
        return {
            i: [n for n in operator.reads if run.operators[n].floating]
            if not layered[i] or i in passed
            else []
            for i, operator in enumerate(run.operators)
        }

    def floats(begin: Iterable[int]) -> list[int]:
        return [n for n in begin if run.operators[n].floating]

    branch = behind(edges(()), floats(entries))
    shared = branch & behind(edges(through), floats([stream]))
    assert Paths(run, layered).share_source(entries, stream, through) == bool(shared)


class _Counted(list[Operator]):
    """A list that counts how often it was looked into."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return super().__getitem__(place)


def chain(blocks: int) -> tuple[nn.Module, ForwardPass, list[LayerSpec]]:
    """A residual network: each block's convolution reads the stream that it is added to."""
    model = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(blocks)))
    operators = _Counted([Operator("input", (), ())])
    for i in range(blocks):
        stream = len(operators) - 1
        operators.append(Operator("convolution", (stream,), ("", str(i))))
        operators.append(Operator("add", (stream, stream + 1), ("",), addend=True))
    layers = [LayerSpec(str(i), "conv", 4, 4, (1, 1), macs=16, params=20) for i in range(blocks)]
    return model, ForwardPass(operators, (len(operators) - 1,)), layers


def test_each_block_of_a_chain_is_a_branch_and_deep_ones_cost_no_more() -> None:
    looks = {}
    for blocks in (20, 80):
        model, run, layers = chain(blocks)
        finder = Finder(model, run, layers)
        found = finder.branches()
        assert [branch.block.layers for branch in found] == [(str(i),) for i in range(blocks)]
        assert not finder.idle()
        assert isinstance(run.operators, _Counted)
        looks[blocks] = run.operators.looks
    assert looks[80] < 4.5 * looks[20]


def test_a_layer_of_a_chain_comes_from_all_before_it() -> None:
    model, run, layers = chain(5)
    found = layer_sources(Finder(model, run, layers), layers)
    assert found == tuple((OUTSIDE, *range(i)) for i in range(5))
