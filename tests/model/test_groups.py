"""Which channels go together, checked against what the networks' own source says."""

from __future__ import annotations

import pytest
import torch
from masking import same_as_masked
from small_networks import example, make
from torch import nn

from autocompress.model.groups import channel_groups
from autocompress.policy.inventory import ChannelGroup


def groups(name: str) -> dict[str, ChannelGroup]:
    found, _ = channel_groups(make(name), example(name))
    return {g.name: g for g in found}


def test_a_flattened_map_feeds_several_features_per_channel() -> None:
    found = groups("plain")
    assert set(found) == {"conv1", "conv2", "fc1"}
    assert dict(found["conv2"].spans) == {"fc1": 4}
    _, plan = channel_groups(make("plain"), example("plain"))
    linear = next(m for m in plan.members["conv2"] if m.module == "fc1")
    assert linear.index[3] == (12, 13, 14, 15)


def test_an_addition_couples_both_streams_and_marks_them_residual() -> None:
    found = groups("residual")
    assert found["stem"].producers == ("stem", "conv2")
    assert found["project"].producers == ("project", "conv4")
    assert {n: g.residual for n, g in found.items()} == {
        "stem": True,
        "conv1": False,
        "project": True,
        "conv3": False,
    }


def test_concatenated_channels_keep_their_own_places() -> None:
    _, plan = channel_groups(make("concat"), example("concat"))
    mix = next(m for m in plan.members["conv2"] if m.module == "mix")
    assert mix.index == tuple((12 + i,) for i in range(6))
    norm = next(m for m in plan.members["conv1"] if m.module == "norm3")
    assert norm.index == tuple((6 + i,) for i in range(6))


def test_a_gate_and_a_depthwise_layer_go_with_the_channels_they_touch() -> None:
    found = groups("depthwise")
    assert found["expand"].producers == ("expand", "excite")
    assert set(found["expand"].consumers) == {"squeeze", "project"}
    assert "depth" in dict(found["expand"].spans)


def test_grouped_convolutions_lose_the_same_places_in_every_group() -> None:
    _, plan = channel_groups(make("grouped"), example("grouped"))
    assert groups("grouped")["conv2"].unit == 4
    assert plan.units["conv2"] == tuple((j, j + 4, j + 8, j + 12) for j in range(4))


def test_a_layer_that_runs_twice_couples_its_input_with_its_output() -> None:
    stem = groups("shared")["stem"]
    assert stem.producers == ("stem", "twice")
    assert stem.consumers == ("twice", "last")


def test_what_cannot_be_pruned_is_named_with_the_reason() -> None:
    _, plan = channel_groups(make("option_a"), example("option_a"))
    assert plan.skipped["linear"] == "these are the model's outputs"
    assert "zeros are padded beside" in plan.skipped["conv1"]
    cell = nn.LSTM(8, 8, proj_size=6)
    projected = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), _Last(cell), nn.Linear(6, 5))
    found, plan = channel_groups(projected, torch.randn(3, 2, 6))
    assert [g.name for g in found] == ["0"]
    assert "projects its states" in plan.skipped["2.cell"]


def test_directions_lose_the_same_units_and_stacked_layers_are_one() -> None:
    (embed, cell), plan = channel_groups(make("two_way_lstm"), example("two_way_lstm"))
    assert embed.consumers == ("cell",)
    assert (cell.producers, cell.consumers, cell.channels) == (("cell",), ("head",), 16)
    assert plan.units["cell"] == tuple((unit, unit + 8) for unit in range(8))


@pytest.mark.parametrize(("read", "span"), [("last_only", 0.5), ("flat", 2), ("all", 1.5)])
def test_final_states_are_followed_to_what_reads_them(read: str, span: float) -> None:
    """One direction's state of two; states of stacked layers, flattened; outputs beside states.

    A unit of two directions is two channels of the group: so 1.5 are three inputs per unit.
    """

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, 8)
            self.cell = nn.LSTM(8, 8, 2, batch_first=True, bidirectional=read != "flat")
            self.head = nn.Linear({"last_only": 8, "flat": 16, "all": 24}[read], 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs, (states, _) = self.cell(torch.relu(self.embed(x)))
            if read == "flat":
                return self.head(states.transpose(0, 1).flatten(1))
            if read == "last_only":
                return self.head(states[-1])
            return self.head(torch.cat([outputs[:, -1], states[-1]], 1))

    model = Reader().eval()
    found, plan = channel_groups(model, torch.randn(3, 4, 6))
    assert [g.name for g in found] == ["embed", "cell"]
    assert dict(found[1].spans) == {"head": span}
    same_as_masked(model, plan, torch.randn(5, 4, 6), 0.4)


class _Last(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


@pytest.mark.parametrize(
    ("ratio", "multiple", "unit", "kept"),
    [
        (0.5, 1, 1, 8),
        (0.99, 1, 1, 1),
        (0.5, 8, 1, 8),
        (0.7, 4, 1, 4),
        (0.9, 1, 4, 4),
        (0, 8, 1, 16),
    ],
)
def test_kept_channels_are_rounded_and_never_none(
    ratio: float, multiple: int, unit: int, kept: int
) -> None:
    group = ChannelGroup("a", ("a",), ("b",), 16, unit)
    assert group.kept(ratio, multiple) == kept


def test_window_attention_has_heads_and_keeps_the_width_around_it() -> None:
    from torchvision.models import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 16, [1, 2], [2, 4], [4, 4], num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    found, plan = channel_groups(model, x[:1])
    blocks = ["features.1.0", "features.3.0", "features.3.1"]
    assert [g.name for g in found] == [f"{b}.{part}" for b in blocks for part in ("attn", "mlp.0")]
    assert [(g.channels, g.unit) for g in found if g.name.endswith("attn")] == [
        (16, 8),
        (32, 8),
        (32, 8),
    ]
    assert plan.skipped["features.0.0"] == "features.1.0.attn fixes the width of these channels"
    assert torch.equal(model(x), before)


def test_a_window_attention_of_another_kind_keeps_its_heads_as_well() -> None:
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    model = SwinTransformer(
        [4, 4],
        16,
        [1, 1],
        [2, 4],
        [4, 4],
        num_classes=5,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    ).eval()
    found, plan = channel_groups(model, torch.randn(1, 3, 32, 32))
    assert [g.name for g in found] == ["features.1.0.mlp.0", "features.3.0.mlp.0"]
    assert plan.skipped["features.0.0"] == "features.1.0.attn fixes the width of these channels"
