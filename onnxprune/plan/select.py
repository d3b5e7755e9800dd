"""Selectors: what a pattern means.

``conv*`` is a glob over names of groups, blocks, nodes and tensors, ``re:...`` a regular expression over the same,
``op:Conv`` an operator type. A node stands for the channels that it writes, for its weights, and for the blocks around
it; a tensor for all its axes.
"""

import fnmatch
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.arguments import patterns
from onnxprune.channels.blocks import Block
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.errors import SelectorError
from onnxprune.model.shapes import node_name


@dataclass(frozen=True, slots=True)
class Named:
    """The names by which selectors find a thing, and the types of the operators that it stands for."""

    names: frozenset[str]
    ops: frozenset[str] = frozenset()


Things = Mapping[str, Named]
"""Things of one kind by their own names."""


def select(
    channels: Channels,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    others: Sequence[Things] = (),
) -> tuple[ChannelGroup, ...]:
    """Returns the prunable groups that some ``include`` pattern matches (all without one) and no ``exclude`` pattern.

    Args:
        channels: Analysis of the model.
        include: Selectors.
        exclude: Selectors.
        others: Things of other kinds that a selector may mean instead.

    Raises:
        SelectorError: a pattern matches nothing, or is not a regular expression.
    """
    include, exclude = patterns(include, "--include"), patterns(exclude, "--exclude")
    things = named_groups(channels)
    check_patterns((*include, *exclude), (things, *others))
    chosen = admitted(things, include, exclude)
    return tuple(group for group in channels.prunable if group.name in chosen)


def matching(channels: Channels, wanted: Sequence[str] | str) -> tuple[ChannelGroup, ...]:
    """Returns the groups that some pattern matches, frozen ones too.

    Raises:
        SelectorError: a pattern matches nothing, or is not a regular expression.
    """
    things, wanted = named_groups(channels), patterns(wanted, "--group")
    check_patterns(wanted, (things,))
    names = set[str]().union(*(found(things, pattern) for pattern in wanted))
    return tuple(group for group in channels.groups if group.name in names)


def admitted(things: Things, include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Returns the things that some ``include`` pattern matches (all without one) and no ``exclude`` pattern."""
    included = set[str]().union(*(found(things, pattern) for pattern in include)) if include else set(things)
    return included.difference(*(found(things, pattern) for pattern in exclude))


def found(things: Things, pattern: str) -> set[str]:
    """Returns the things that a pattern means.

    Raises:
        SelectorError: the pattern is not a regular expression.
    """
    kind, _, rest = pattern.partition(":")
    matches = _matcher(pattern)
    if kind == "op" and rest:
        return {name for name, thing in things.items() if any(map(matches, thing.ops))}
    return {name for name, thing in things.items() if any(map(matches, thing.names))}


def check_patterns(wanted: Sequence[str], kinds: Sequence[Things]) -> None:
    """Checks that every pattern means something.

    Raises:
        SelectorError: a pattern matches nothing, or is not a regular expression.
    """
    for pattern in wanted:
        if not any(found(things, pattern) for things in kinds):
            raise SelectorError(
                f"the selector {pattern!r} matches no group, node or tensor that has channels: "
                "list the names with 'onnxprune inspect'"
            )


def named_groups(channels: Channels) -> dict[str, Named]:
    """Returns the groups of a model, by their own names, those of their tensors, and of the nodes that write them."""
    names = {group.name: {group.name} for group in channels.groups}
    ops: dict[str, set[str]] = {group.name: set() for group in channels.groups}
    by_tensor: dict[str, set[str]] = {}
    for group in channels.groups:
        for tensor in {axis.tensor for member in group.members for axis in member.axes}:
            by_tensor.setdefault(tensor, set()).add(group.name)
            names[group.name].add(tensor)
    for node in channels.graph.nodes:
        for name in set[str]().union(*(by_tensor.get(tensor.name, set()) for tensor in node.outputs)):
            names[name].add(node_name(node))
            ops[name].add(node.op)
    return {name: Named(frozenset(words), frozenset(ops[name])) for name, words in names.items()}


def named_blocks(graph: gs.Graph, blocks: Collection[Block]) -> dict[str, Named]:
    """Returns blocks by their names and those of the nodes in them."""
    return {
        block.name: Named(
            frozenset([block.name, *(node_name(graph.nodes[place]) for place in block.nodes)]),
            frozenset(graph.nodes[place].op for place in block.nodes),
        )
        for block in blocks
    }


def named_weights(graph: gs.Graph) -> dict[str, Named]:
    """Returns the tensors that nodes read, by their names and those of the nodes."""
    names: dict[str, set[str]] = {}
    ops: dict[str, set[str]] = {}
    for node, tensor in _reads(graph):
        names.setdefault(tensor, {tensor}).add(node_name(node))
        ops.setdefault(tensor, set()).add(node.op)
    return {name: Named(frozenset(words), frozenset(ops[name])) for name, words in names.items()}


def _reads(graph: gs.Graph) -> Iterator[tuple[gs.Node, str]]:
    for node in graph.nodes:
        for tensor in node.inputs:
            if tensor.name:
                yield node, tensor.name


def _matcher(pattern: str) -> Callable[[str], bool]:
    kind, _, rest = pattern.partition(":")
    if kind == "op" and rest:
        return lambda name: fnmatch.fnmatchcase(name, rest)
    if kind == "re" and rest:
        try:
            expression = re.compile(rest)
        except re.error as error:
            raise SelectorError(
                f"the selector {pattern!r} is not a regular expression ({error}): correct it"
            ) from error
        return lambda name: expression.search(name) is not None
    return lambda name: name == pattern or fnmatch.fnmatchcase(name, pattern)
