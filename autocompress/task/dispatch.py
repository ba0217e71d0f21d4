"""Watching every operator of torch that runs."""

from __future__ import annotations

import sys
from typing import Any

from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorMode(TorchDispatchMode):
    """A dispatch mode that does not load torch's compiler where nothing is compiled.

    torch keeps its compiler away from every such mode, and loads the compiler for that, which takes
    two to four seconds in each process. As long as nobody has loaded it there is nothing to keep
    away.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # seen to below

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own: Any = cls.__dict__["__torch_dispatch__"]
        apart = _disable_dynamo(own, recursive=True)

        def dispatch(self: TorchDispatchMode, *args: Any, **named: Any) -> Any:
            return (apart if "torch._dynamo" in sys.modules else own)(self, *args, **named)

        cls.__torch_dispatch__ = dispatch  # type: ignore[method-assign]  # the same arguments, passed on
