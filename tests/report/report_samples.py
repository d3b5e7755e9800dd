"""Reports with figures in every field, for the tests of this folder."""

import random

from onnxprune.report.schema import (
    AllocationRow,
    BlockRow,
    Environment,
    Fidelity,
    FindingRow,
    FrozenRow,
    Fusion,
    GroupRow,
    Latency,
    LatencyRatio,
    LeftNode,
    LinkRow,
    ModelRow,
    NodeRow,
    Proof,
    Quantization,
    Ratios,
    RecoveredLayer,
    Recovery,
    Report,
    Side,
    SparseTensor,
    Sparsity,
)

LINKS = (LinkRow("conv", "Conv", "writes", ("conv.weight[0]", "y[1]")),)


def full_report() -> Report:
    """A slimmed model whose accuracy held, with something in every section."""
    before = Side(
        path="model.onnx",
        sha256="a" * 64,
        parameters=25_557_032,
        nonzero_parameters=25_557_032,
        macs=4_090_000_000,
        bytes=102_400_000,
        compressed_bytes=95_000_000,
        nodes=175,
        latency_ms=Latency(20.0, 24.0, 24.0, 26.0, 28.0, 33.0, 36.0, 41.7),
        metrics={"top1": 0.921},
    )
    after = Side(
        path="model.slim.onnx",
        sha256="b" * 64,
        parameters=12_778_516,
        nonzero_parameters=6_389_258,
        macs=2_045_000_000,
        bytes=51_200_000,
        compressed_bytes=23_750_000,
        nodes=161,
        latency_ms=Latency(10.0, 12.0, 12.0, 13.0, 14.0, 16.0, 18.0, 83.3),
        metrics={"top1": 0.919},
    )
    generator = random.Random(0)
    return Report(
        command="slim",
        models=(ModelRow("model.onnx", Latency(1, 1.1, 1, 1.2, 1.3, 1.4, 1.5, 900), LatencyRatio(0.5, 0.4, 0.6)),),
        options={"channels": 0.5, "exclude": ["op:Gemm"], "int8": True, "layers": None},
        environment=Environment("0.1.0", "1.23.0", "1.31.0", "CPUExecutionProvider", "a processor", 2, 0),
        before=before,
        after=after,
        ratios=Ratios.between(before, after, LatencyRatio(0.5, 0.48, 0.52)),
        fidelity=Fidelity(0.95, 0.9871, 21.5, 3.25),
        proof=Proof(True, 3.2e-5, 2.1e-6, True, ("norm",), 1e-4, 32, False),
        groups=(
            *(GroupRow(f"conv{number}", 64, 32, axes=5, unit_size=1, links=LINKS) for number in range(50)),
            GroupRow("norm", 64, 16, exact=False, axes=3),
            GroupRow("head", 10, frozen="graph output 'logits'", axes=2),
            GroupRow("odd_a", 8, frozen="no channel rule for Odd", axes=1),
            GroupRow("odd_b", 8, frozen="no channel rule for Odd", axes=1),
        ),
        input_shapes={"image": (1, 3, 224, 224)},
        selected=("conv0",),
        frozen=(
            FrozenRow("fc", "Gemm", "fc.weight", 0, 10, "head", "graph output 'logits'"),
            FrozenRow("fc", "Gemm", "fc.bias", 0, 10, "head", "graph output 'logits'"),
            FrozenRow("odd", "Odd", "odd.weight", 0, 8, "odd_a", "no channel rule for Odd", True),
            FrozenRow("conv1", "Conv", "conv1.weight", 2, 3, "conv1.weight", "spatial or kernel axis"),
        ),
        blocks=(
            BlockRow("block1", True, None, 1_180_160, None, 0.0312),
            BlockRow("block1.conv", False, None, 590_080, "block1"),
            BlockRow("block2", False, "its input and output differ in shape", 2_000_000),
            BlockRow("block3", True, None, 4_000, None, 0.0101),
            *(BlockRow(f"stage{number}", False, None, 1000) for number in range(50)),
        ),
        nodes=tuple(
            NodeRow(f"node{number}", "Conv", 1000 * number, 500 * number, 0.1 * number, 0.05 * number)
            for number in range(60)
        ),
        sparsity=Sparsity(
            "2:4",
            0.5,
            (SparseTensor("fc.weight", 0.5, "2:4"), *(SparseTensor(f"w{n}", 0.5, "2:4", f"m{n}") for n in range(50))),
            (
                LeftNode("stem", "it is the first that reads the input"),
                LeftNode("deep1", "it is depthwise: each of its few weights matters"),
                LeftNode("deep2", "it is depthwise: each of its few weights matters"),
            ),
        ),
        quantization=Quantization("ort-cpu", 50, 53, (LeftNode("fc", "its weights are half zero"),), Fusion(48, 50)),
        findings=(FindingRow("rule", "conv1", "it matters", "do it"),),
        recovery=Recovery(
            "reconstruct", (RecoveredLayer("conv1", 0.3, 0.1, True), RecoveredLayer("conv2", 0.1, 0.2, False))
        ),
        allocations=(
            AllocationRow("uniform", 1000, 500, 0.25, True),
            AllocationRow("per-mac", 900, 400, 0.5),
            AllocationRow("global", 900, 400, None),
        ),
        warnings=("free dimension 'batch' was set to 1",),
        seconds={"total": 12.5, "analyze": 0.5},
        latency_samples={
            "before": [generator.gauss(24.0, 1.0) for _ in range(200)],
            "after": [generator.gauss(12.0, 1.0) for _ in range(200)],
        },
    )


def checked() -> Report:
    """A file that was held against the rules of a target."""
    zero = ("tensorrt/zero-point", "zero points are 0", "calibrate <b>symmetrically</b>")
    return Report(
        command="check",
        options={"target": "tensorrt"},
        before=Side(path="model.onnx", parameters=1000, macs=2000, bytes=4000, nodes=7),
        findings=(
            FindingRow("onnx/scale", "a|b", zero[1], zero[2], "hint"),
            *(FindingRow(zero[0], f"q{number}", *zero[1:], detail=f"it is {number}") for number in range(5)),
            FindingRow("tensorrt/bias", "q0", "biases are floats", "store floats"),
        ),
    )


def inspection() -> Report:
    """A model that was only looked at."""
    return Report(
        command="inspect",
        before=Side(path="model.onnx", parameters=1000, macs=2000, bytes=4000, nodes=7),
        groups=(GroupRow("conv1", 64, axes=4), GroupRow("head", 10, frozen="graph output 'logits'", axes=2)),
        blocks=(
            BlockRow("block1", parameters=500),
            BlockRow("block1.conv", parameters=250, parent="block1"),
            BlockRow("block2", reason="its input and output differ in shape"),
        ),
        nodes=(NodeRow("conv1", "Conv", 1500), NodeRow("head", "Gemm", 500)),
    )
