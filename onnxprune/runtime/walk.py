"""Runs a graph over samples piece by piece: no node runs twice, and only what later pieces read is kept.

A walk holds a *frontier*: the tensors that are computed and that nodes not yet run still read. Reaching a tensor runs
the nodes between the frontier and it, all samples, run by run. Weights may be changed between two steps: a piece is
built when it is reached. What does not fit into memory goes to files.
"""

from __future__ import annotations

import math
import mmap
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.model.graph import read_by
from onnxprune.model.io import Graph
from onnxprune.model.shapes import Shapes
from onnxprune.model.sizes import generic_shapes
from onnxprune.runtime.session import SessionOptions, open_session

Feeds = Mapping[str, np.ndarray]

Kept = np.ndarray | Path
"""An array, or a file that holds it."""

LARGEST_RUN, LARGEST_TENSOR, ITEM = 64, 64 << 20, 4
"""Most samples in one run, and most bytes of its largest tensor, at ``ITEM`` bytes a number."""

MAPPED = 1 << 20
"""Bytes from which on an array is worth a mapping of its own."""

PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""What such a mapping is asked for with, where the system knows the difference."""

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the fraction of it that is done."""


class Memory:
    """A number of bytes that several walks share; arrays above it are written to files."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._folder: Path | None = None
        self._files = 0

    def keep(self, array: np.ndarray) -> Kept:
        """Returns a copy of the array, or the path of a file that holds it; :func:`read` gives it back.

        What a session returns lies in memory that the session asked for in large pieces, and each piece stays as long
        as any array in it: hence the copy.
        """
        if self._used + array.nbytes <= self._limit or array.ndim == 0:
            self._used += array.nbytes
            return _copied(array)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnxprune-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._files += 1
        path = self._folder / f"{self._files}.npy"
        np.save(path, array)
        return path

    def free(self, kept: Kept) -> None:
        """Forgets an array that was kept."""
        if isinstance(kept, Path):
            kept.unlink()
        else:
            self._used -= kept.nbytes


def _copied(array: np.ndarray) -> np.ndarray:
    """Returns a copy; a large one lies in memory of its own, which goes back to the system with it."""
    if array.nbytes < MAPPED or array.dtype.hasobject:
        return array.copy()
    result = np.frombuffer(mmap.mmap(-1, array.nbytes, **PRIVATE), array.dtype).reshape(array.shape)
    result[...] = array
    return result


def read(kept: Kept) -> np.ndarray:
    """Returns an array that was kept; what lies in a file is read as it is used, and let go with the array."""
    return np.load(kept, mmap_mode="r") if isinstance(kept, Path) else kept


def run_size(graph: Graph, shapes: Shapes, sample: Feeds) -> int:
    """Returns how many samples to run at a time: at most ``LARGEST_RUN``, fewer where activations are large.

    Args:
        graph: What runs.
        shapes: Shapes of its tensors, with any number of samples.
        sample: One sample.
    """
    fed = sum(math.prod(shapes.shapes.get(name, ())) for name in sample)
    made = {tensor.name for node in graph.nodes for tensor in node.outputs} - shapes.stored
    largest = max((math.prod(shapes.shapes.get(name, ())) for name in made), default=0)
    each = ITEM * largest / max(fed, 1) * sum(np.asarray(array).size for array in sample.values())
    return int(min(max(LARGEST_TENSOR / max(each, 1), 1), LARGEST_RUN))


class Walk:
    """The state of one walk over a graph.

    Attributes:
        runs: Number of runs that the samples are fed in.
    """

    def __init__(
        self, graph: Graph, feeds: Sequence[Feeds], memory: Memory, options: SessionOptions | None = None
    ) -> None:
        self._graph = graph
        self._options = options or SessionOptions()
        self._memory = memory
        self._types = generic_shapes(graph)[0].types
        self.runs = len(feeds)
        self._kept: dict[str, list[Kept]] = {}
        for tensor in graph.inputs:
            self._kept[tensor.name] = [np.asarray(feed[tensor.name]) for feed in feeds]
        self._fed = set(self._kept)
        self._producer = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
        self._order = {id(node): place for place, node in enumerate(graph.nodes)}
        self._reads = {id(node): read_by(node) for node in graph.nodes}
        self._waiting: dict[str, int] = {}
        for node in graph.nodes:
            for name in self._reads[id(node)]:
                self._waiting[name] = self._waiting.get(name, 0) + 1
        for tensor in graph.outputs:
            self._waiting[tensor.name] = self._waiting.get(tensor.name, 0) + 1
        self._done: set[int] = set()

    def reach(self, names: Sequence[str]) -> None:
        """Computes tensors, so that :meth:`values` has them until :meth:`release` is called.

        Raises:
            ModelError: ONNX Runtime cannot run a piece of the graph.
        """
        missing = [name for name in names if name not in self._kept]
        for name in names:
            self._waiting[name] = self._waiting.get(name, 0) + 1
        if not missing:
            return
        piece = self._between(missing)
        for node in piece:
            self._done.add(id(node))
            for name in self._reads[id(node)]:
                self._waiting[name] -= 1
        results = [t.name for node in piece for t in node.outputs if t.name and self._waiting.get(t.name, 0) > 0]
        self._run(piece, results)
        for name in [name for name in self._kept if self._waiting.get(name, 0) <= 0]:
            self._forget(name)

    def release(self, names: Sequence[str]) -> None:
        """Gives up what :meth:`reach` was asked for; the walk keeps what it needs itself."""
        for name in names:
            self._waiting[name] -= 1
            if self._waiting[name] <= 0 and name in self._kept:
                self._forget(name)

    def values(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor that was reached, run by run."""
        yield from map(read, self._kept[name])

    def _forget(self, name: str) -> None:
        kept = self._kept.pop(name)
        for one in () if name in self._fed else kept:
            self._memory.free(one)

    def _between(self, names: Sequence[str]) -> list[gs.Node]:
        """Returns the nodes from the frontier to the names, in graph order."""
        found: dict[int, gs.Node] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            node = self._producer.get(name)
            if name in self._kept or node is None or id(node) in found or id(node) in self._done:
                continue
            found[id(node)] = node
            waiting += self._reads[id(node)]
        return sorted(found.values(), key=lambda node: self._order[id(node)])

    def _run(self, piece: Sequence[gs.Node], results: Sequence[str]) -> None:
        made = {tensor.name for node in piece for tensor in node.outputs}
        needed = {name for node in piece for name in self._reads[id(node)]}
        sources = sorted(name for name in needed - made if name in self._kept)
        tensors = {t.name: t for node in piece for t in (*node.inputs, *node.outputs)}
        tensors.update({name: gs.Variable(name) for name in sources if name not in tensors})  # read by bodies alone
        graph = Graph(
            nodes=list(piece),
            inputs=[tensors[name] for name in sources],
            outputs=[tensors[name] for name in results],
            opset=self._graph.opset,
            import_domains=self._graph.import_domains,
            ir_version=self._graph.ir_version,
        ).copy()
        for tensor in graph.inputs:
            first = read(self._kept[tensor.name][0])
            tensor.dtype, tensor.shape = first.dtype, [None] * first.ndim
        for tensor in graph.outputs:
            kind = self._types.get(tensor.name)
            tensor.dtype = tensor.dtype if kind is None else helper.tensor_dtype_to_np_dtype(kind)
        session = open_session(graph, self._options)
        for run in range(self.runs):
            values = session.run({name: read(self._kept[name][run]) for name in sources}, list(results))
            for name, value in values.items():
                self._kept.setdefault(name, []).append(self._memory.keep(value))
