"""Search compression policies for a PyTorch model under a hardware budget.

``search`` runs a study, ``apply`` rebuilds a model from a recipe, ``export`` writes it;
``evaluate``, ``profile``, ``verify`` and ``bench`` measure. The rest is what goes into them and
comes out. Importing this package loads neither torch nor Ray nor MLflow.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from autocompress.api import Answer, Result, search
from autocompress.api_models import apply, bench, evaluate, export, profile, verify
from autocompress.errors import AutocompressError
from autocompress.policy.budget import Budget
from autocompress.policy.operators import operator
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.policy.recipe import Recipe
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.results.front import ParetoFront
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial

if TYPE_CHECKING:
    from autocompress.task.data import Data, Split
    from autocompress.task.metrics import TaskMetric
    from autocompress.task.task import Task

    __version__: str

__all__ = [
    "Answer",
    "AutocompressError",
    "Budget",
    "CompressionSettings",
    "Data",
    "Distill",
    "LayerPolicy",
    "Measurement",
    "ParetoFront",
    "Policy",
    "Recipe",
    "Result",
    "SpaceConfig",
    "Split",
    "Task",
    "TaskMetric",
    "Trial",
    "__version__",
    "apply",
    "bench",
    "evaluate",
    "export",
    "operator",
    "profile",
    "search",
    "verify",
]


# a library says nothing unless it is asked: without this, warnings would go to standard error
logging.getLogger("autocompress").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("autocompress")
    if name in ("Data", "Split"):  # they load torch
        from autocompress.task import data

        return getattr(data, name)
    if name == "Task":
        from autocompress.task.task import Task

        return Task
    if name == "TaskMetric":
        from autocompress.task.metrics import TaskMetric

        return TaskMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
