"""What of any file a target will refuse, or compute more slowly or less exactly than it could."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxprune.model.graph import Graph
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.quantize.checks import HINT, Check, Finding, integer
from onnxprune.quantize.lint_onnx import CHECKS as ONNX
from onnxprune.quantize.lint_onnxruntime import CPU, CUDA
from onnxprune.quantize.lint_tensorrt import CHECKS as TENSORRT
from onnxprune.quantize.pairs import Pairs
from onnxprune.quantize.targets import Target

CHECKS: Mapping[str, tuple[Check, ...]] = {
    "ort-cpu": (*ONNX, *CPU),
    "ort-cuda": (*ONNX, *CUDA),
    "tensorrt": (*ONNX, *TENSORRT),
    "generic": ONNX,
}
"""The rules of each target."""


def lint(graph: Graph, shapes: Shapes, target: Target) -> tuple[Finding, ...]:
    """Returns where a graph breaks the rules of a target, violations before hints.

    Args:
        graph: The graph, with or without Q/DQ; bodies of control flow are not looked into.
        shapes: Shapes and types of its tensors, as far as they are known.
        target: What it is to run on.
    """
    pairs = Pairs(graph, shapes)
    if not pairs.steps and not any(map(integer, pairs.nodes)):
        return (
            Finding(
                f"{target.name}/nothing",
                "",
                "nothing is quantized: there is neither a Q, a DQ nor an integer operator",
                f"onnxprune quantize --target {target.name}",
                HINT,
            ),
        )
    found = [one for check in CHECKS[target.name] for one in _found(check, pairs, target)]
    return tuple(sorted(found, key=lambda one: one.level == HINT))


def _found(check: Check, pairs: Pairs, target: Target) -> Iterator[Finding]:
    seen = set()
    for node, detail in check.find(pairs, target):
        if (id(node), detail) not in seen:
            seen.add((id(node), detail))
            rule = check.rule.replace("*", target.name)
            fix = check.fix.replace("*", target.name)
            yield Finding(rule, node_name(node), check.why, fix, check.level, detail)
