"""Models and data of a study, from its factories or as they were handed over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autocompress.errors import AutocompressError, InputError
from autocompress.policy.recovery import ModelSection
from autocompress.run.factories import import_factory, raised
from autocompress.run.variables import with_variables

if TYPE_CHECKING:
    from torch import nn

    from autocompress.run.study import DataSection
    from autocompress.task.data import Data


def load_model(section: ModelSection) -> nn.Module:
    """Call a model factory and load its checkpoint.

    Args:
        section: with variables resolved.

    Raises:
        InputError: no such factory, not a module, or a checkpoint of another architecture.
    """
    from torch import nn

    model = _called(section)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{section.factory} must return a torch.nn.Module, got {type(model).__name__}."
        )
    if section.checkpoint:
        from autocompress.workloads.models import load_weights

        load_weights(model, section.checkpoint)
    return model.eval()


def _called(section: ModelSection | DataSection) -> Any:
    """What a section's factory gives."""
    args = section.args
    factory = import_factory(section.factory, args)
    try:
        return factory(**args)
    except AutocompressError:
        raise
    except (Exception, SystemExit) as error:  # a function that ends the process says nothing
        raise InputError(f"{section.factory} failed with {args}: {raised(error)}.") from error


def load_teacher(section: ModelSection) -> nn.Module:
    """A teacher, prepared as the model is."""
    from autocompress.model.prepare import prepare

    return prepare(load_model(with_variables(section))).model


def load_importance(name: str) -> None:
    """See that a function that ``settings.importance`` names may be run, and can be found.

    Raises:
        InputError: no such function, or one that nobody vouches for.
    """
    if ":" in name:
        import_factory(name)


def load_data(section: DataSection, given: Any = None) -> Data:
    """Call a data factory, or take data that were handed over, and make splits of them.

    Args:
        section: of the study, with variables resolved.
        given: takes the place of what the factory returns.
    """
    from autocompress.task.data import Data

    if isinstance(given, Data):
        return Data.wrap(given, dynamic=section.dynamic)
    source = given
    if source is None:
        source = _called(section)
    input_fn, target_fn = (
        import_factory(path) if path else None for path in (section.input_fn, section.target_fn)
    )
    return Data.wrap(
        source,
        input_fn=input_fn,
        target_fn=target_fn,
        memory=section.memory,
        length=section.length,
        dynamic=section.dynamic,
    )


def with_axes(data: Data, model: nn.Module) -> Data:
    """The data with the free axes of their inputs: checked as they were said, or found."""
    from autocompress.exporters.axes import find_axes
    from autocompress.task.dynamic import AUTO, read_axes

    if not data.dynamic:
        return replace(data, dynamic={})
    if data.dynamic != AUTO:
        return replace(data, dynamic=read_axes(data.dynamic, data.train.inputs(1)))
    axes, notes = find_axes(model, data.train.inputs(2))
    found = ", ".join(f"{name} {dict(own)}" for name, own in axes.items()) or "none"
    notes = [f"Free axes beside the batch: {found}.", *notes]
    return replace(data, dynamic=axes, notes=(*data.notes, *notes))
