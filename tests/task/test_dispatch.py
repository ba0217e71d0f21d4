"""Operators are watched without torch's compiler, and with it where something is compiled."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from autocompress.task.dispatch import OperatorMode


class Seen(OperatorMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_every_operator_is_seen_and_computes_what_it_does() -> None:
    x = torch.linspace(-1, 1, 8)
    with Seen() as mode:
        found = torch.relu(x * 2).sum()
    assert mode.names == ["mul", "relu", "sum"]
    assert found == torch.relu(x * 2).sum()


def test_what_is_compiled_within_is_seen_as_it_runs() -> None:
    """The compiler is loaded then: it must neither enter the mode nor leave anything out."""
    import torch._dynamo  # it is there from now on

    @torch.compile(backend="eager")
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) * 2

    x = torch.linspace(-1, 1, 8)
    with Seen() as mode:
        found = doubled(x)
    torch.testing.assert_close(found, torch.sin(x) * 2)
    assert [name for name in mode.names if name in ("sin", "mul")] == ["sin", "mul"]


def test_a_network_is_looked_at_without_loading_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from autocompress.model.inventory import take_inventory\n"
        "layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)\n"
        "found = take_inventory(nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8))\n"
        "assert found.channel_groups\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
