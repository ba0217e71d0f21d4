"""Activation ranges from calibration inputs, taken at the tensors that the file will quantize."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.build.histogram import Histogram
from autocompress.errors import CalibrationError
from autocompress.machine.facts import cores_to_use
from autocompress.policy.settings import CompressionSettings
from autocompress.task import nested
from autocompress.task.data import portions
from autocompress.techniques.compressed import Range

_SAMPLES = 16_384
"""Values kept per tensor and batch, drawn at random, for percentiles and the MSE search."""

_SEARCHED = 32_768
"""Of them, so many enter the MSE search; thirty-six ranges are tried on each."""

_LEVELS = 255
_CLIPS = np.linspace(0.3, 1.0, 36)


class RangeFinder:
    """Collects extremes and samples of one tensor, and settles its range.

    Args:
        settings: ``ranges`` (minmax, percentile, mse) and ``percentile``.
    """

    def __init__(self, settings: CompressionSettings) -> None:
        self.settings = settings
        self.low = 0.0
        self.high = 0.0
        self.samples: list[NDArray[np.float32]] = []
        self._draw = np.random.default_rng(settings.seed)

    def add(self, values: NDArray[Any]) -> None:
        """Take a batch of values in."""
        flat = values.reshape(-1)
        self.low = min(self.low, float(flat.min(initial=0.0)))
        self.high = max(self.high, float(flat.max(initial=0.0)))
        if self.settings.ranges != "minmax":
            # drawn, not strided: a stride falls in step with image rows and sees border pixels only
            if len(flat) > _SAMPLES:
                flat = flat[self._draw.integers(len(flat), size=_SAMPLES)]
            self.samples.append(flat.astype(np.float32))

    def range(self) -> Range:
        """The range; always includes zero and is never empty."""
        low, high = self.low, self.high
        if self.samples and self.settings.ranges == "percentile":
            values = np.concatenate(self.samples)
            tail = (100 - self.settings.percentile) / 2
            low = min(0.0, float(np.percentile(values, tail)))
            high = max(0.0, float(np.percentile(values, 100 - tail)))
        elif self.samples and self.settings.ranges == "mse":
            values = np.concatenate(self.samples)
            step = max(1, len(values) // _SEARCHED)
            low, high = least_squares_range(values[::step], low, high)
        return _filled(low, high)


def range_of(histogram: Histogram, settings: CompressionSettings) -> Range:
    """The range of a tensor whose values are known by their histogram.

    Args:
        histogram: of all its values.
        settings: as for ``RangeFinder``.
    """
    low, high = min(0.0, histogram.low), max(0.0, histogram.high)
    if settings.ranges == "percentile":
        tail = (1 - settings.percentile / 100) / 2
        low = min(0.0, histogram.quantile(tail))
        high = max(0.0, histogram.quantile(1 - tail))
    elif settings.ranges == "mse":
        low, high = least_squares_range(histogram.centres, low, high, histogram.counts)
    return _filled(low, high)


def _filled(low: float, high: float) -> Range:
    return Range(low, high if high > low else low + 1e-6)


def least_squares_range(
    values: NDArray[Any], low: float, high: float, weights: NDArray[Any] | None = None
) -> tuple[float, float]:
    """The shrunken range with the least mean squared rounding and clipping error at 8 bits.

    Both ends shrink alike, which keeps the search one-dimensional (Nahshan et al., 2021, use the
    same family).

    Args:
        values: sample of the tensor.
        low, high: its extremes, zero included.
        weights: how often each value counts; ``None`` is once.
    """
    best = (np.inf, low, high)
    for clip in _CLIPS.tolist():  # numbers of NumPy would make doubles of all values
        a, b = low * clip, high * clip
        scale = (b - a) / _LEVELS
        if scale <= 0:
            continue
        zero = round(-a / scale)
        rounded = (np.clip(np.round(values / scale) + zero, 0, _LEVELS) - zero) * scale
        error = float(np.average((values - rounded) ** 2, weights=weights))
        if error < best[0]:
            best = (error, a, b)
    return best[1], best[2]


def tensor_ranges(
    model: Any,
    tensors: Iterable[str],
    inputs: Any,
    settings: CompressionSettings,
    batch: int = 64,
    *,
    whole: Collection[str] = (),
) -> dict[str, Range]:
    """Run a float ONNX graph on calibration inputs and settle the ranges of some tensors.

    Args:
        model, tensors, inputs, batch: as in ``tensor_values``.
        settings: how ranges are chosen.
        whole: tensors of which nothing may be clipped, however ranges are chosen.

    Returns:
        Name to range; none of a tensor that had no value, as what an expert reads that no input
        is sent to.
    """
    unclipped = settings.model_copy(update={"ranges": "minmax"})
    tensors = list(tensors)
    finders: dict[str, RangeFinder] = {}
    for name, values in tensor_values(model, tensors, inputs, batch):
        if values.size and name not in finders:
            finders[name] = RangeFinder(unclipped if name in whole else settings)
        if values.size:
            finders[name].add(values)
    return {name: finder.range() for name, finder in finders.items()}


def tensor_histograms(
    model: Any, tensors: Iterable[str], inputs: Any, batch: int = 64
) -> dict[str, Histogram]:
    """Run a float ONNX graph on inputs and count the values of some tensors.

    Args:
        model, tensors, inputs, batch: as in ``tensor_values``.

    Returns:
        Name to histogram, empty of a tensor that had no value.

    Raises:
        ValueError: values that are not finite.
    """
    tensors, found = list(tensors), dict[str, Histogram]()
    for name, values in tensor_values(model, tensors, inputs, batch):
        if values.size:
            own = Histogram.of(values)
            found[name] = found[name] + own if name in found else own
    return dict.fromkeys(tensors, Histogram.empty()) | found


def tensor_values(
    model: Any, tensors: Iterable[str], inputs: Any, batch: int = 64
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Run a float ONNX graph on inputs and give the values of some tensors, batch after batch.

    Args:
        model: ``onnx.ModelProto`` with a free batch dimension.
        tensors: names of tensors in the graph.
        inputs: a batch as the model takes it, or a split that gives them.
        batch: samples per run, which bounds the memory.

    Raises:
        CalibrationError: the graph does not run on the inputs.
    """
    import onnx
    import onnxruntime as ort

    names = [i.name for i in model.graph.input]
    tensors = list(tensors)
    given = {n for n in tensors if n in names}
    wanted = [n for n in dict.fromkeys(tensors) if n not in given]
    if not given and not wanted:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {o.name for o in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(n) for n in wanted if n not in present
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = cores_to_use()
    # what is watched is an output, which no fusion hides
    session = ort.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for part in portions(inputs, batch):
        arrays = [p.numpy(force=True) for p in nested.tensors(part)]
        feed = dict(zip(names, arrays, strict=True))
        yield from ((name, feed[name]) for name in given)
        try:
            found = session.run(wanted, feed) if wanted else []
        except Exception as error:  # what runs the graph has no base class of its errors
            raise CalibrationError(f"Calibration inputs do not fit the model: {error}") from error
        yield from zip(wanted, found, strict=True)
