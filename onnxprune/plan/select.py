"""Selectors: which groups a pattern means.

``conv*`` is a glob over names of groups, nodes and tensors, ``re:...`` a regular expression over the same, ``op:Conv``
an operator type. A node stands for the channels that it writes, a tensor for all its axes.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence

from onnxprune.arguments import patterns
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.errors import SelectorError
from onnxprune.model.shapes import node_name


def select(
    channels: Channels, include: Sequence[str] | str = (), exclude: Sequence[str] | str = ()
) -> tuple[ChannelGroup, ...]:
    """Returns the prunable groups that some ``include`` pattern matches (all without one) and no ``exclude`` pattern.

    Raises:
        SelectorError: a pattern matches nothing, or is not a regular expression.
    """
    include, exclude = patterns(include, "--include"), patterns(exclude, "--exclude")
    index = _Index(channels)
    included = set[str]().union(*(index.groups(pattern) for pattern in include)) if include else None
    excluded = set[str]().union(*(index.groups(pattern) for pattern in exclude))
    return tuple(
        group
        for group in channels.prunable
        if (included is None or group.name in included) and group.name not in excluded
    )


def matching(channels: Channels, wanted: Sequence[str] | str) -> tuple[ChannelGroup, ...]:
    """Returns the groups that some pattern matches, frozen ones too.

    Raises:
        SelectorError: a pattern matches nothing, or is not a regular expression.
    """
    index = _Index(channels)
    names = set[str]().union(*(index.groups(pattern) for pattern in patterns(wanted, "--group")))
    return tuple(group for group in channels.groups if group.name in names)


class _Index:
    def __init__(self, channels: Channels) -> None:
        self._names: dict[str, set[str]] = {}
        self._ops: dict[str, set[str]] = {}
        by_tensor: dict[str, set[str]] = {}
        for group in channels.groups:
            self._names.setdefault(group.name, set()).add(group.name)
            for member in group.members:
                for axis in member.axes:
                    by_tensor.setdefault(axis.tensor, set()).add(group.name)
        for name, groups in by_tensor.items():
            self._names.setdefault(name, set()).update(groups)
        for node in channels.graph.nodes:
            written = set[str]().union(*(by_tensor.get(tensor.name, set()) for tensor in node.outputs))
            if written:
                self._names.setdefault(node_name(node), set()).update(written)
                self._ops.setdefault(node.op, set()).update(written)

    def groups(self, pattern: str) -> set[str]:
        kind, _, rest = pattern.partition(":")
        names = self._ops if kind == "op" and rest else self._names
        matches = _matcher(pattern)
        found = set[str]().union(*(groups for name, groups in names.items() if matches(name)))
        if not found:
            raise SelectorError(
                f"the selector {pattern!r} matches no group, node or tensor that has channels: "
                "list the names with 'onnxprune inspect'"
            )
        return found


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
