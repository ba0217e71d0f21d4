"""Search compression policies for a PyTorch model under a hardware budget.

``search`` takes a model at hand, ``run_study`` a study's file; ``apply`` rebuilds a model from a
recipe, ``export`` writes it; ``evaluate``, ``profile``, ``verify`` and ``bench`` measure. The rest
is what goes into them and comes out. Importing this package loads neither torch nor Ray nor MLflow.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.api import Answer, Result, run_study, search
    from autocompress.api_models import apply, bench, evaluate, export, profile, verify
    from autocompress.controller.config import SearchConfig
    from autocompress.errors import AutocompressError
    from autocompress.policy.budget import Budget
    from autocompress.policy.operators import operator
    from autocompress.policy.policy import Distill, LayerPolicy, Policy
    from autocompress.policy.recipe import Recipe
    from autocompress.policy.recovery import RecoveryConfig
    from autocompress.policy.settings import CompressionSettings
    from autocompress.policy.space_config import SpaceConfig
    from autocompress.results.front import ParetoFront
    from autocompress.results.metric import Measurement
    from autocompress.results.trial import Trial
    from autocompress.run.study import TrackingConfig
    from autocompress.targets.config import TargetConfig
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
    "RecoveryConfig",
    "Result",
    "SearchConfig",
    "SpaceConfig",
    "Split",
    "TargetConfig",
    "Task",
    "TaskMetric",
    "TrackingConfig",
    "Trial",
    "__version__",
    "apply",
    "bench",
    "evaluate",
    "export",
    "operator",
    "profile",
    "run_study",
    "search",
    "verify",
]


# a library says nothing unless it is asked: without this, warnings would go to standard error
logging.getLogger("autocompress").addHandler(logging.NullHandler())

_MODULES = {
    "api": ("Answer", "Result", "run_study", "search"),
    "api_models": ("apply", "bench", "evaluate", "export", "profile", "verify"),
    "controller.config": ("SearchConfig",),
    "errors": ("AutocompressError",),
    "policy.budget": ("Budget",),
    "policy.operators": ("operator",),
    "policy.policy": ("Distill", "LayerPolicy", "Policy"),
    "policy.recipe": ("Recipe",),
    "policy.recovery": ("RecoveryConfig",),
    "policy.settings": ("CompressionSettings",),
    "policy.space_config": ("SpaceConfig",),
    "results.front": ("ParetoFront",),
    "results.metric": ("Measurement",),
    "results.trial": ("Trial",),
    "run.study": ("TrackingConfig",),
    "targets.config": ("TargetConfig",),
    "task.data": ("Data", "Split"),
    "task.metrics": ("TaskMetric",),
    "task.task": ("Task",),
}
"""Where each name is defined. Nothing is loaded before it is asked for: ``autocompress.runtime``
runs where none of what the rest needs is installed."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("autocompress")
    if name in _MODULE_OF:
        return getattr(import_module(f"autocompress.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
