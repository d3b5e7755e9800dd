"""Which input sizes shapes are inferred for: given ones, ones that suit the graph, ones that stand for all others."""

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from onnxprune.model.shapes import Shape, Shapes, ShapeWalk

PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069)
"""Sizes of free dimensions that no product of other sizes contains."""


def default_sizes(graph: gs.Graph, batch: int = 2, spatial: int = 64) -> dict[str, Shape]:
    """Returns sizes for the free dimensions of the graph inputs: the first axis is a batch, the others are space."""
    sizes = {}
    for tensor in graph.inputs:
        if tensor.shape is not None:
            sizes[tensor.name] = tuple(
                size if isinstance(size, int) and size > 0 else (spatial if dim else batch)
                for dim, size in enumerate(tensor.shape)
            )
    return sizes


def infer_shapes(graph: gs.Graph, sizes: Mapping[str, Shape] | None = None) -> Shapes:
    """Returns the shapes for the given input sizes, or for sizes that suit the graph where none are given.

    Free dimensions are tried in a few sizes, and the choice that leaves the fewest shapes unknown is kept.
    """
    if sizes is not None:
        return ShapeWalk(graph, _completed(graph, sizes)).run()
    candidates: list[dict[str, Shape]] = []
    for batch, spatial in ((2, 64), (1, 64), (1, 224), (1, 320), (1, 16)):
        choice = default_sizes(graph, batch, spatial)
        if choice not in candidates:
            candidates.append(choice)
    best: Shapes | None = None
    for choice in candidates:
        found = ShapeWalk(graph, choice).run()
        if best is None or len(found.shapes) > len(best.shapes):
            best = found
        if _complete(graph, found):
            break
    return best if best is not None else Shapes()


def generic_shapes(graph: gs.Graph, sizes: Mapping[str, Shape] | None = None) -> tuple[Shapes, dict[str, Shape]]:
    """Returns shapes in which free dimensions cannot be mistaken for others, and the input sizes they follow from.

    Every free dimension gets a large prime of its own, so that what holds here holds for every size: with a batch of
    2, a Reshape that mixes batch and channels may happen to look like one that does not. Where a graph does not admit
    that, the batch alone gets one, and then none.
    """
    chosen = _with_primes(graph, default_sizes(graph) if sizes is None else _completed(graph, sizes), None)
    found = ShapeWalk(graph, chosen).run()
    if _complete(graph, found):
        return found, chosen
    plain = infer_shapes(graph, sizes)
    base = {tensor.name: plain.shapes[tensor.name] for tensor in graph.inputs if tensor.name in plain.shapes}
    for dims in (None, 0):
        chosen = _with_primes(graph, base, dims)
        if chosen == base:
            break
        found = ShapeWalk(graph, chosen).run()
        if len(found.shapes) >= len(plain.shapes):
            return found, chosen
    return plain, base


def _completed(graph: gs.Graph, sizes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {**default_sizes(graph, batch=1), **sizes}


def _complete(graph: gs.Graph, found: Shapes) -> bool:
    return all(tensor.name in found.shapes for node in graph.nodes for tensor in node.outputs if tensor.name)


def _with_primes(graph: gs.Graph, base: Mapping[str, Shape], only: int | None) -> dict[str, Shape]:
    primes = iter(PRIMES)
    symbols: dict[str, int] = {}
    chosen = dict(base)
    for tensor in graph.inputs:
        sizes = list(base.get(tensor.name, ()))
        for dim, declared in enumerate(tensor.shape or ()):
            if isinstance(declared, int) or dim >= len(sizes) or only not in (None, dim):
                continue
            name = (declared or "").strip("?") or f"{tensor.name}[{dim}]"  # '?' says that a dimension has no name
            symbols[name] = symbols.get(name) or next(primes, sizes[dim])
            sizes[dim] = symbols[name]
        if tensor.name in base:
            chosen[tensor.name] = tuple(sizes)
    return chosen
