"""CUDA graphs: a GPU decodes a small batch faster than Python can launch its kernels one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Step: TypeAlias = Callable[..., tuple[Tensor, ...]]
Replay: TypeAlias = "tuple[Callable[[], object], tuple[Tensor, ...]]"
"""Runs a captured step again on what its inputs hold by now; the tensors that its results are in."""


def capture(step: Step, inputs: tuple[Tensor, ...]) -> Replay:
    """Capture `step` on a GPU, after it has run once to make what it makes only once."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*inputs)
    return graph.replay, results


class Graphs:
    """A step as graphs, one for each shape of its inputs, captured where a shape comes for the second time running.

    A step may change tensors of its own in place, in the same places whenever it runs; `forget` once they are others.
    Its results hold until the next call.
    """

    def __init__(self, step: Step, capture: Callable[[Step, tuple[Tensor, ...]], Replay] = capture) -> None:
        self._step, self._capture = step, capture
        self._captured: dict[tuple[torch.Size, ...], tuple[tuple[Tensor, ...], Replay]] = {}
        self._last: tuple[torch.Size, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shape = tuple(x.shape for x in inputs)
        if shape not in self._captured:
            if shape != self._last:
                self._last = shape
                return self._step(*inputs)
            kept = tuple(x.clone() for x in inputs)
            self._captured[shape] = kept, self._capture(self._step, kept)
        kept, (replay, results) = self._captured[shape]
        for place, new in zip(kept, inputs, strict=True):
            place.copy_(new)
        replay()
        return results

    def forget(self) -> None:
        """Drop what was captured: it works on memory that is no longer looked at."""
        self._captured.clear()
        self._last = ()
