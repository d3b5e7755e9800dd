"""The report as data: frozen dataclasses whose fields are the stable keys of the JSON report.

A figure that was not measured is ``None`` here and ``null`` in JSON, never 0.
"""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune import arguments
from onnxprune.errors import UsageError
from onnxprune.report.plain import NOT_IN_JSON, built, plain

SCHEMA = 1
NOISE = 0.02
"""Ratios of a file to itself were seen up to 1.016, beyond the confidence interval."""


@dataclass(frozen=True)
class Environment:
    """What the figures were measured with."""

    onnxprune: str | None = None
    onnx: str | None = None
    onnxruntime: str | None = None
    provider: str | None = None
    cpu: str | None = None
    threads: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Latency:
    """Time of one run in milliseconds; ``throughput`` in samples per second."""

    min: float | None = None
    mean: float | None = None
    median: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    throughput: float | None = None


@dataclass(frozen=True)
class Side:
    """One model file: what it holds, what it costs, what it reaches.

    ``bytes`` are those that it takes as it is stored, ``compressed_bytes`` those that gzip makes of it, which are told
    where zeros are what the file is about.
    """

    path: str | None = None
    sha256: str | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    compressed_bytes: int | None = None
    nodes: int | None = None
    latency_ms: Latency | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LatencyRatio:
    """Latency after ÷ before: the median and its confidence interval."""

    median: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def slower(self) -> bool:
        """Whether the result is slower by more than one file is than itself, run to run."""
        return self.low is not None and self.low > 1 + NOISE


@dataclass(frozen=True)
class Ratios:
    """After ÷ before, so that 0.5 is half as large or twice as fast."""

    parameters: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency: LatencyRatio = field(default_factory=LatencyRatio)

    @classmethod
    def between(cls, before: Side, after: Side | None, latency: LatencyRatio | None = None) -> Ratios:
        """The ratios of two sides; without ``latency`` the ratio of the medians, with no interval."""
        if after is None:
            return cls()
        if latency is None and before.latency_ms is not None and after.latency_ms is not None:
            latency = LatencyRatio(median=_ratio(after.latency_ms.median, before.latency_ms.median))
        return cls(
            parameters=_ratio(after.parameters, before.parameters),
            macs=_ratio(after.macs, before.macs),
            bytes=_ratio(after.bytes, before.bytes),
            latency=latency or LatencyRatio(),
        )


@dataclass(frozen=True)
class Fidelity:
    """How close the outputs of the result are to those of the original."""

    agreement: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    max_abs: float | None = None


@dataclass(frozen=True)
class Proof:
    """Masked original against sliced model, before any repair, without the inexact groups.

    ``samples`` is the number of samples compared, ``random_inputs`` says whether they were random. Where rounding alone
    put ``relative`` beyond the limit, ``float64`` is the relative difference in float64; otherwise it is None.
    """

    checked: bool = False
    max_abs: float | None = None
    relative: float | None = None
    passed: bool | None = None
    inexact_groups: tuple[str, ...] = ()
    limit: float | None = None
    samples: int | None = None
    random_inputs: bool | None = None
    float64: float | None = None


@dataclass(frozen=True)
class LinkRow:
    """A node that ties axes of a group: it ``writes`` them with weights, ``passes`` them on, or ``sums`` over them."""

    node: str
    op: str
    role: str
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupRow:
    """One channel group; ``frozen`` is the reason why nothing of it may go.

    ``unit_size`` is the number of channels of its widest weight that go with one unit; as many units go from each of
    the ``blocks``. ``links``, the nodes that tie the group, are filled in by ``inspect`` alone.
    """

    name: str
    units: int
    removed: int = 0
    exact: bool = True
    frozen: str | None = None
    axes: int = 0
    unit_size: int | None = None
    blocks: int = 1
    links: tuple[LinkRow, ...] = ()


@dataclass(frozen=True)
class FrozenRow:
    """An axis of a stored tensor of which nothing may go, the node that reads it, and the reason.

    ``group`` is the group that it belongs to; with ``inexact`` it goes where ``--inexact`` is given.
    """

    node: str
    op: str
    tensor: str
    axis: int
    size: int
    group: str
    reason: str
    inexact: bool = False


@dataclass(frozen=True)
class BlockRow:
    """One block; ``reason`` says why it cannot be dropped.

    ``parent`` is the block around it that counts in its place; ``score`` is what spoke for keeping it when it went.
    """

    name: str
    dropped: bool = False
    reason: str | None = None
    parameters: int | None = None
    parent: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class SparseTensor:
    """One tensor that was masked, or held against a pattern, with its fraction of zeros.

    ``node`` multiplies with it and sums over ``axis`` of it; ``violations`` of its ``groups`` of weights hold more than
    the pattern allows. With a ``reason`` it is not held to the pattern.
    """

    name: str
    fraction: float | None = None
    pattern: str | None = None
    node: str | None = None
    axis: int | None = None
    groups: int | None = None
    violations: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class LeftNode:
    """A node that a step left as it was, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Sparsity:
    """The zeros that masking put into the weights; ``dense`` are the operators that it left alone, and why."""

    pattern: str | None = None
    fraction: float | None = None
    tensors: tuple[SparseTensor, ...] = ()
    dense: tuple[LeftNode, ...] = ()


@dataclass(frozen=True)
class Fusion:
    """How many of the eligible nodes the runtime really fused into integer kernels."""

    fused: int | None = None
    eligible: int | None = None


@dataclass(frozen=True)
class Quantization:
    """What became of the numbers: ``form`` is int8, fp16, int8 or int4 weights, or more than one of them."""

    target: str | None = None
    quantized: int | None = None
    eligible: int | None = None
    left: tuple[LeftNode, ...] = ()
    fusion: Fusion = field(default_factory=Fusion)
    form: str | None = None


@dataclass(frozen=True)
class RecoveredLayer:
    """The held-out error of one repaired node before and after; ``kept`` is False where it was rolled back."""

    node: str
    error_before: float | None = None
    error_after: float | None = None
    kept: bool = True


@dataclass(frozen=True)
class Recovery:
    """What was repaired; ``method`` is None where no repair was applied."""

    method: str | None = None
    layers: tuple[RecoveredLayer, ...] = ()


@dataclass(frozen=True)
class AllocationRow:
    """An allocation that competed: what it leaves, and how far its repaired result is from the original.

    ``divergence`` is the squared error of the outputs on held-out samples relative to their variance, with a repair on
    part of the samples.
    """

    name: str
    macs: int | None = None
    parameters: int | None = None
    divergence: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class NodeRow:
    """Cost of one node before and after; a node that is gone has ``macs_after`` 0."""

    name: str
    op: str
    macs_before: int | None = None
    macs_after: int | None = None
    ms_before: float | None = None
    ms_after: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """Latency of one of the models that ``bench`` measured; ``ratio`` is against the first."""

    name: str
    latency_ms: Latency = field(default_factory=Latency)
    ratio: LatencyRatio = field(default_factory=LatencyRatio)


@dataclass(frozen=True)
class FindingRow:
    """A node that breaks a rule of a target, as a violation or a hint; ``detail`` says what is wrong at this one."""

    rule: str
    node: str
    why: str
    fix: str
    level: str = "violation"
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that a command found, did and measured.

    ``input_shapes`` are the sizes at which MACs were counted, where the model leaves some free. ``frozen`` and
    ``selected``, the names of the groups that were asked for, are filled in by ``inspect`` alone.
    ``latency_samples`` holds the single times in milliseconds under ``before`` and ``after`` for the histogram of the
    HTML page; it is not part of the JSON report and not compared.
    """

    command: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    before: Side = field(default_factory=Side)
    after: Side | None = None
    ratios: Ratios = field(default_factory=Ratios)
    fidelity: Fidelity = field(default_factory=Fidelity)
    proof: Proof = field(default_factory=Proof)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    groups: tuple[GroupRow, ...] = ()
    selected: tuple[str, ...] = ()
    frozen: tuple[FrozenRow, ...] = ()
    blocks: tuple[BlockRow, ...] = ()
    nodes: tuple[NodeRow, ...] = ()
    models: tuple[ModelRow, ...] = ()
    sparsity: Sparsity = field(default_factory=Sparsity)
    quantization: Quantization = field(default_factory=Quantization)
    findings: tuple[FindingRow, ...] = ()
    recovery: Recovery = field(default_factory=Recovery)
    allocations: tuple[AllocationRow, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA
    latency_samples: dict[str, list[float]] = field(default_factory=dict, compare=False, metadata=NOT_IN_JSON)

    def to_dict(self) -> dict[str, Any]:
        """The JSON report as plain dicts, lists, strings and numbers, ``schema`` first."""
        fields = plain(self)
        return {"schema": fields.pop("schema"), **fields}

    def to_json(self) -> str:
        """The JSON report as text; NaN and infinity become null."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report that ``to_dict`` wrote; unknown keys are passed over.

        Raises:
            UsageError: it is not a report of this schema.
        """
        version = data.get("schema") if isinstance(data, Mapping) else None
        if version != SCHEMA:
            raise UsageError(
                f"the report has schema {version!r} and this version reads schema {SCHEMA}: write the report anew"
            )
        try:
            report = built(cls, data)
        except (TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"the report does not follow schema {SCHEMA} ({error}): write the report anew") from error
        return typing.cast(Report, report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, Markdown or HTML, by the suffix of ``path``; whole or not at all.

        Raises:
            UsageError: the suffix is none of .json, .md, .html, or the packages that write HTML are missing.
            OutputError: the file cannot be written.
        """
        from onnxprune.report.files import save

        save(self, Path(arguments.path(path, "the path of the report")))


def _ratio(after: float | None, before: float | None) -> float | None:
    if after is None or before is None or before == 0:
        return None
    return after / before
