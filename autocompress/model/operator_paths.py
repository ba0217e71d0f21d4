"""The operators of one run of a model, and who works for whom among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from torch import Tensor


@dataclass
class Operator:
    """One operator of a run.

    Args:
        name: of torch's operator.
        reads: numbers of the operators whose results it reads; of an addition, first the left
            operand's, then the right one's.
        modules: names of the modules that were running.
        addend: whether its two operands are of one shape and floating.
        floating: whether its result is.
    """

    name: str
    reads: tuple[int, ...]
    modules: tuple[str, ...]
    addend: bool = False
    floating: bool = True


@dataclass
class ForwardPass:
    """The operators of one forward pass, inputs among them, in the order in which they ran.

    Args:
        operators: of the run.
        outputs: numbers of those that give the model's answer.
        answers: the tensors of that answer.
        resized: names of modules that do not take one tensor and give one of the same shape.
        passing: name of each recurrent layer, to whether every run of it gave as large a tensor as
            it took.
    """

    operators: list[Operator] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    answers: list[Tensor] = field(default_factory=list)
    resized: set[str] = field(default_factory=set)
    passing: dict[str, bool] = field(default_factory=dict)


class Paths:
    """Who works for whom, in times that do not grow with what lies before and behind.

    An operator reads what ran before it, so that a higher number never feeds a lower one.

    Args:
        run: of a model.
        layered: whether each of its operators is part of a layer.
    """

    def __init__(self, run: ForwardPass, layered: Sequence[bool]) -> None:
        self.operators, self.layered = run.operators, layered
        self.live: set[int] = set()
        """Those from which a path leads to the outputs."""
        ahead = list(run.outputs)
        while ahead:
            number = ahead.pop()
            if number not in self.live:
                self.live.add(number)
                ahead += self.operators[number].reads
        self._readers = Counter(run.outputs)
        for number in self.live:
            self._readers.update(self.operators[number].reads)

    def only_for(self, operand: int) -> set[int]:
        """Operators that work for one reader of a live one alone, that one among them.

        Those are they all of whose readers do.

        Args:
            operand: what the reader reads, once.
        """
        found: set[int] = set()
        left: dict[int, int] = {}
        ahead = [operand]
        while ahead:
            number = ahead.pop()
            left[number] = left.get(number, self._readers[number]) - 1
            if left[number] == 0:
                found.add(number)
                ahead += self.operators[number].reads
        return found

    def share_source(self, entries: Collection[int], stream: int, through: Collection[int]) -> bool:
        """Whether something that entries come from is what a stream comes from.

        Only floats count, and nothing behind a layer, but for those given on the way to the stream.
        The latest operators are looked at first: all that reads them is known then, and the search
        ends at the first that both come from.

        Args:
            entries: numbers of operators.
            stream: number of one.
            through: numbers of operators of layers that the stream may have come through.
        """
        sides = {-number: {"branch"} for number in entries}
        sides.setdefault(-stream, set()).add("stream")
        ahead = list(sides)
        heapify(ahead)
        while ahead:
            number = heappop(ahead)
            side, operator = sides[number], self.operators[-number]
            if not operator.floating:
                continue
            if len(side) == 2:
                return True
            if not self.layered[-number] or ("stream" in side and -number in through):
                for read in operator.reads:
                    if -read not in sides:
                        sides[-read] = set()
                        heappush(ahead, -read)
                    sides[-read] |= side
        return False
