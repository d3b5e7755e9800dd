"""Turns what the rooms found into the parts of a report."""

import hashlib
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from onnxprune.channels.explain import Link, frozen_axes
from onnxprune.channels.facts import SPATIAL
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.model.cost import Cost
from onnxprune.model.external import weights_files
from onnxprune.model.io import digest, model_bytes
from onnxprune.model.sparse import compressed_size
from onnxprune.report.schema import Environment, FrozenRow, GroupRow, Latency, LinkRow, NodeRow, Report, Side
from onnxprune.runtime.session import SessionOptions, environment


def describe_side(
    proto: onnx.ModelProto | None,
    total: Cost | None,
    path: Path | None,
    latency: Latency | None = None,
    metrics: Mapping[str, float | None] | None = None,
    *,
    sparse: bool = False,
    compress: bool = False,
) -> Side:
    """Returns one side of a report; the digest is the file's if there is one, the size counts weights beside it.

    Args:
        proto: The model as it is, or would be, stored.
        total: What it costs.
        path: The file that it was read from.
        latency: Its latency, where it was measured.
        metrics: What it reaches.
        sparse: Whether the file holds weights in sparse form, so that it is not as large as the model in memory.
        compress: Whether to tell the compressed size too.
    """
    files = [] if path is None or not sparse else [path, *weights_files(path)]
    size = None if proto is None else sum(file.stat().st_size for file in files) or model_bytes(proto)
    checksum = None
    if path is not None:
        checksum = digest(path)
    elif proto is not None and size is not None and size < onnx.checker.MAXIMUM_PROTOBUF:
        checksum = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    return Side(
        path=str(path) if path is not None else None,
        sha256=checksum,
        parameters=total.parameters if total else None,
        nonzero_parameters=total.nonzero_parameters if total else None,
        macs=total.macs if total and not total.uncounted else None,
        bytes=size,
        compressed_bytes=_compressed(proto, path) if compress or sparse else None,
        nodes=total.nodes if total else None,
        latency_ms=latency,
        metrics=dict(metrics or {}),
    )


def _compressed(proto: onnx.ModelProto | None, path: Path | None) -> int | None:
    source = proto if path is None else path
    return None if source is None else compressed_size(source)


def describe_file(report: Report, path: str | os.PathLike[str]) -> Report:
    """Returns the report with what is known only once the result lies on disk."""
    if report.after is None:
        return report
    after = replace(report.after, path=str(path), sha256=digest(path))
    return replace(report, after=after)


def environment_of(
    options: SessionOptions, seed: int, provider: str | None = None, threads: int | None = None
) -> Environment:
    """Returns versions and machine; provider and threads are those of the session that measured, if any."""
    found = environment(options)
    return Environment(
        onnxprune=str(found["onnxprune"]),
        onnx=str(found["onnx"]),
        onnxruntime=str(found["onnxruntime"]),
        provider=provider,
        cpu=str(found["cpu"]),
        threads=threads,
        seed=seed,
    )


def group_rows(
    channels: Channels,
    removals: Mapping[str, Sequence[int]],
    links: Mapping[str, Sequence[Link]] | None = None,
    selected: Container[str] = (),
) -> tuple[GroupRow, ...]:
    """Returns the groups that say something: those that can go, and those that could if something did not hold them."""
    links = links or {}
    return tuple(
        GroupRow(
            name=group.name,
            units=group.units,
            removed=len(removals.get(group.name, ())),
            exact=group.exact,
            frozen=group.frozen,
            axes=group.axes,
            unit_size=group.width,
            blocks=group.block_count,
            links=tuple(LinkRow(link.node, link.op, link.role, link.axes) for link in links.get(group.name, ())),
        )
        for group in channels.groups
        if group.name in selected or worth_telling(group)
    )


def worth_telling(group: ChannelGroup) -> bool:
    """Returns whether a group belongs in a report: kernel sizes and single numbers do not."""
    return group.frozen is None or (group.frozen != SPATIAL and group.units > 1)


def frozen_rows(channels: Channels) -> tuple[FrozenRow, ...]:
    """Returns every axis of a stored tensor of which nothing can go, with the node and the reason."""
    return tuple(FrozenRow(**asdict(row)) for row in frozen_axes(channels))


def counted_at(graph: gs.Graph, sizes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Returns the input sizes at which MACs were counted, nothing where the model leaves none free."""
    declared = {tensor.name: tensor.shape for tensor in graph.inputs}
    if all(shape is not None and all(isinstance(size, int) for size in shape) for shape in declared.values()):
        return {}
    return {name: tuple(int(size) for size in sizes[name]) for name in declared if name in sizes}


def node_rows(
    costs: tuple[Cost, Cost], per_node: tuple[Mapping[str, float], Mapping[str, float]]
) -> tuple[NodeRow, ...]:
    """Returns cost and time of the nodes that multiply or take time, before and after."""
    after = {item.name: item.macs for item in costs[1].per_node}
    rows = []
    for item in costs[0].per_node:
        before_ms, after_ms = (times.get(item.name) for times in per_node)
        if item.macs or before_ms:
            rows.append(NodeRow(item.name, item.op, item.macs, after.get(item.name, 0), before_ms, after_ms))
    return tuple(rows)
