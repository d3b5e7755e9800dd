"""Files for TensorRT against the rules of its table, ours and those of ONNX Runtime's quantizer.

What integers do to the results is computed in floats between Q and DQ, as TensorRT is not at hand. Trained networks are
judged by their labels; networks with random weights, some of them made here, by how alike the outputs stay.
"""

import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

sys.path.insert(0, str(Path(__file__).parent))

from accuracy_sheet import Sizes, Subject, cifar, small
from quantize_rival import Reader

from onnxprune.commands.check import check
from onnxprune.commands.slim import run
from onnxprune.data.random import find_running_sizes, random_samples
from onnxprune.model.io import load, save, to_proto
from onnxprune.report.schema import Report
from onnxprune.slim import Recipe

TARGET = "tensorrt"
MOST_LOST = 0.5
"""Points of accuracy that int8 may cost."""

EXPORTS = (
    "densenet121", "googlenet", "yolo_c2f", "mobilenet_v2", "mobilenet_v3_small", "own_unet", "own_edsr",
    "own_diffusion_unet", "torchvision_resnet18", "efficientnet_b0", "convnext_tiny", "transformers_albert",
    "transformers_bert.", "transformers_gpt2", "transformers_llama.", "torchvision_swin.", "torchvision_vit",
)  # fmt: skip
"""Exports of bench/zoo.py, by a part of their names."""

MADE: Mapping[str, tuple[str, str, str]] = {
    "residual": (
        "x:N,3,32,32",
        "w=32,3,3,3 a=32,32,3,3 b=32,32,3,3 c=64,32,3,3 d=64,64,3,3 e=64,32,1,1 k=64,10 o=10",
        "s = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (s) t = Conv <pads = [1, 1, 1, 1]> (r, a) u = Relu (t) "
        "v = Conv <pads = [1, 1, 1, 1]> (u, b) p = Add (v, r) q = Relu (p) "
        "f = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (q, c) g = Relu (f) "
        "h = Conv <pads = [1, 1, 1, 1]> (g, d) i = Conv <strides = [2, 2]> (q, e) j = Add (i, h) l = Relu (j) "
        "m = GlobalAveragePool (l) n = Flatten (m) y = Gemm (n, k, o)",
    ),
    "concat": (
        "x:N,3,32,32",
        "w=32,3,3,3 a=32,32,1,1 b=32,32,3,3 c=32,64,3,3 d=32,96,1,1 k=32,10 o=10",
        "s = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (s) t = Conv (r, a) u = Relu (t) "
        "v = Conv <pads = [1, 1, 1, 1]> (r, b) f = Relu (v) g = Concat <axis = 1> (u, f) "
        "h = Conv <pads = [1, 1, 1, 1]> (g, c) i = Relu (h) j = Concat <axis = 1> (g, i) l = Conv (j, d) "
        "m = GlobalAveragePool (l) n = Flatten (m) y = Gemm (n, k, o)",
    ),
    "depthwise": (
        "x:N,3,32,32",
        "w=32,3,3,3 a=96,32,1,1 b=96,1,3,3 c=32,96,1,1 d=96,1,5,5 k=32,10 o=10",
        "s = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (s) t = Conv (r, a) u = Relu (t) "
        "v = Conv <pads = [1, 1, 1, 1], group = 96> (u, b) f = Relu (v) g = Conv (f, c) h = Add (r, g) "
        "i = Conv (h, a) j = HardSwish (i) l = Conv <pads = [2, 2, 2, 2], group = 96> (j, d) z = Relu (l) "
        "e = Conv (z, c) p = Add (e, h) m = GlobalAveragePool (p) n = Flatten (m) y = Gemm (n, k, o)",
    ),
    "transposed": (
        "x:N,3,32,32",
        "w=32,3,3,3 a=64,32,3,3 b=64,32,2,2 c=32,64,3,3 d=16,32,1,1",
        "s = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (s) t = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) "
        "u = Conv <pads = [1, 1, 1, 1]> (t, a) v = Relu (u) f = ConvTranspose <strides = [2, 2]> (v, b) "
        "g = Concat <axis = 1> (f, r) h = Conv <pads = [1, 1, 1, 1]> (g, c) i = Relu (h) y = Conv (i, d)",
    ),
    "shared": (
        "x:N,3,32,32",
        "w=32,3,3,3 a=32,32,3,3 k=32,32 o=32 l=32,16",
        "s = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (s) t = Conv <pads = [1, 1, 1, 1]> (r, a) u = Relu (t) "
        "v = Conv <pads = [1, 1, 1, 1]> (u, a) p = Add (v, r) q = Relu (p) f = Conv <pads = [1, 1, 1, 1]> (q, a) "
        "m = GlobalAveragePool (f) n = Flatten (m) g = Gemm (n, k, o) h = Relu (g) i = MatMul (h, k) "
        "j = Tanh (i) y = MatMul (j, l)",
    ),
    "transformer": (
        "x:N,16,64",
        "g=64 b=64 q=64,64 k=64,64 v=64,64 o=64,64 u=64,128 c=128 d=128,64 h=64,16 ss=i{0,0,4,16} sm=i{0,0,64} "
        "sq=f#8 rt=f#1.4142135 one=f#1 half=f#0.5",
        "l = LayerNormalization (x, g, b) l1 = MatMul (l, q) l2 = MatMul (l, k) l3 = MatMul (l, v) "
        "h1 = Reshape (l1, ss) h2 = Reshape (l2, ss) h3 = Reshape (l3, ss) "
        "t1 = Transpose <perm = [0, 2, 1, 3]> (h1) t2 = Transpose <perm = [0, 2, 3, 1]> (h2) "
        "t3 = Transpose <perm = [0, 2, 1, 3]> (h3) a = MatMul (t1, t2) e = Div (a, sq) p = Softmax (e) "
        "z = MatMul (p, t3) z1 = Transpose <perm = [0, 2, 1, 3]> (z) z2 = Reshape (z1, sm) z3 = MatMul (z2, o) "
        "r = Add (x, z3) n = LayerNormalization (r, g, b) f = MatMul (n, u) f1 = Add (f, c) e1 = Div (f1, rt) "
        "e2 = Erf (e1) e3 = Add (e2, one) e4 = Mul (f1, e3) e5 = Mul (e4, half) f2 = MatMul (e5, d) s = Add (r, f2) "
        "y = MatMul (s, h)",
    ),
}
"""Small networks by what is in them: the input, stored tensors, and nodes as ONNX text."""


@dataclass(frozen=True)
class Entry:
    """A network, whether its weights were trained, and the preprocessing and samples in ``subject``."""

    subject: Subject
    trained: bool


def network(name: str) -> onnx.ModelProto:
    """Returns one of the networks made here, its weights drawn."""
    given, tensors, text = MADE[name]
    random = np.random.default_rng(0)
    stored = []
    for token in tensors.split():
        key, _, rest = token.partition("=")
        stored.append(numpy_helper.from_array(_values(rest, random), key))
    label, _, sizes = given.partition(":")
    shape = [int(size) if size.isdigit() else size for size in sizes.split(",")]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        list(parser.parse_graph(f"made () => () {{ {text} }}").node),
        name,
        [helper.make_tensor_value_info(label, float32, shape)],
        [helper.make_tensor_value_info("y", float32, None)],
        stored,
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def _values(text: str, random: np.random.Generator) -> np.ndarray:
    """Returns stored integers ``i{1,2}``, a number ``f#2``, or drawn weights of a shape such as ``8,3,3,3``."""
    if text.startswith("i{"):
        return np.array([int(one) for one in text[2:-1].split(",")], np.int64)
    if text.startswith("f#"):
        return np.float32(text[2:])
    shape = tuple(int(size) for size in text.split(","))
    spread = np.sqrt(2 / max(np.prod(shape[1:]), 1)) if len(shape) > 2 else shape[0] ** -0.5
    return (random.normal(size=shape) * spread).astype(np.float32)


def entries(nets: Path | None, exports: Path | None, folder: Path, sizes: Sizes) -> Iterator[Entry]:
    """Yields the networks of the table: trained ones, those made here, exports of a folder.

    Args:
        nets: A folder with trained CIFAR-10 networks.
        exports: A folder with exports of bench/zoo.py.
        folder: Where the networks made here are put.
        sizes: How many samples there are.
    """
    trained = [*(cifar(nets, (20, 56), sizes) if nets else ()), *small(("resnet", "mobilenet", "vit"), sizes)]
    yield from (Entry(subject, True) for subject in trained)
    for name in MADE:
        save(load(network(name)), folder / f"{name}.onnx")
        yield Entry(_drawn(f"made: {name}", folder / f"{name}.onnx", sizes), False)
    for word in EXPORTS if exports else ():
        for path in sorted(exports.glob(f"*{word}*torchscript.17.onnx"))[:1]:
            yield Entry(_drawn(path.name.partition(".")[0], path, sizes), False)


def _drawn(name: str, path: Path, sizes: Sizes) -> Subject:
    """Returns a network with drawn samples."""
    proto = to_proto(load(str(path)))
    shapes = find_running_sizes(proto).shapes
    return Subject(name, path, *(random_samples(proto, shapes, min(sizes.samples, 32), seed) for seed in (1, 2)))


def our_row(entry: Entry, sizes: Sizes) -> str:
    """Returns what the quantized files of a network are worth: int8, and int8 with float16 around it."""
    subject = entry.subject
    recipe = Recipe(
        int8=True, target=TARGET, data=subject.data, eval=subject.verdict, preprocess=subject.preprocess,
        samples=sizes.samples, no_latency=True, threads=1,
    )  # fmt: skip
    made = [run(str(subject.path), replace(recipe, fp16=half)) for half in (False, True)]
    broken = [broken_rules(result.model) for result in made]
    reports = [result.report for result in made]
    found = reports[0].quantization
    missed = "  MISSED rules" if any(broken) else ""
    missed += "  MISSED accuracy" if entry.trained and any(lost(report) > MOST_LOST for report in reports) else ""
    verdict = " ".join(
        f"{_accuracy(report) if entry.trained else '':>14} {100 * (report.fidelity.agreement or np.nan):>6.1f} "
        f"{report.fidelity.sqnr_db or np.nan:>5.1f}"
        for report in reports
    )
    named = "; ".join(f"{rule} {count}" for rule, count in (broken[0] + broken[1]).items())
    return (
        f"{subject.name:<28} {found.quantized:>4}/{found.eligible:<4} {broken[0].total():>4} {broken[1].total():>4} "
        f"{verdict}{missed} {named}"
    )


def broken_rules(model: onnx.ModelProto) -> Counter[str]:
    """Returns how often a file breaks which rule; hints are none."""
    return Counter(
        row.rule.removeprefix(f"{TARGET}/")
        for row in check(model, target=TARGET).findings
        if row.level == "violation"
    )  # fmt: skip


def lost(report: Report) -> float:
    """Returns the points of accuracy that went, ``nan`` without labels."""
    before, after = (side.metrics.get("top1") for side in (report.before, report.after))
    return np.nan if before is None or after is None else 100 * (before - after)


def _accuracy(report: Report) -> str:
    before, after = (side.metrics["top1"] for side in (report.before, report.after))
    return f"{100 * before:.1f} -> {100 * after:.1f}"


def their_rows(entry: Entry, images: int = 16) -> Iterator[str]:
    """Yields the rules that files of ONNX Runtime's quantizer break, for each of its forms."""
    subject = entry.subject
    proto = subject.proto()
    inputs = subject.inputs(Recipe(int8=True, data=subject.data, preprocess=subject.preprocess, samples=images))
    assert inputs.given is not None
    feeds = [dict(feed) for feed in inputs.given.batches(1)][:images]
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        plain, out = str(Path(folder) / "plain.onnx"), str(Path(folder) / "out.onnx")
        save(load(proto), plain)
        for name, make in FORMS.items():
            try:
                make(plain, out, feeds)
            except Exception as error:  # of any kind: it is not for every model
                yield f"{subject.name:<28} {name:<18} it fails: {type(error).__name__}"
                continue
            broken = broken_rules(onnx.load(out))
            rules = ", ".join(f"{rule} {count}" for rule, count in sorted(broken.items(), key=lambda one: -one[1]))
            yield f"{subject.name:<28} {name:<18} {broken.total():>4}  {rules or 'nothing'}"


def _static(plain: str, out: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(plain, out, Reader(feeds))


def _unsigned(plain: str, out: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    from onnxruntime.quantization import QuantType, quantize_static

    quantize_static(plain, out, Reader(feeds), per_channel=True, activation_type=QuantType.QUInt8)


def _operators(plain: str, out: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static

    quantize_static(plain, out, Reader(feeds), quant_format=QuantFormat.QOperator)


def _dynamic(plain: str, out: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(plain, out)


FORMS: Mapping[str, Callable[[str, str, Sequence[Mapping[str, np.ndarray]]], None]] = {
    "default": _static,
    "uint8, per channel": _unsigned,
    "QOperator": _operators,
    "dynamic": _dynamic,
}
"""How ONNX Runtime's quantizer is called."""

OUR_HEAD = (
    "rules: findings of check --target tensorrt, of the int8 file and of that with float16; then for both files",
    "top-1 in percent where there are labels (at most 0.5 points may go), agreement, signal to noise in decibels",
    f"{'network':<28} {'int8':>9} {'rules':>9} {'top-1, int8':>14} {'agree':>6} {'dB':>5} {'and float16':>14} "
    f"{'agree':>6} {'dB':>5}",
)
THEIR_HEAD = ("files of ONNX Runtime's quantizer: findings, and how often which rule is broken",)


def lines(nets: Path | None, exports: Path | None, sizes: Sizes, only: Sequence[str] = ()) -> Iterator[str]:
    """Yields the whole table: ours first, then theirs.

    Args:
        nets: A folder with trained CIFAR-10 networks.
        exports: A folder with exports of bench/zoo.py.
        sizes: How many samples there are.
        only: Networks with one of these words in their names; all by default.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = [
            entry
            for entry in entries(nets, exports, Path(folder), sizes)
            if not only or any(word in entry.subject.name for word in only)
        ]
        yield from OUR_HEAD
        for entry in found:
            try:
                yield our_row(entry, sizes)
            except Exception as error:  # of any kind: one must not end the others
                yield f"{entry.subject.name:<28} ERROR {type(error).__name__}: {error}"[:200].splitlines()[0]
        yield from ("", *THEIR_HEAD)
        for entry in found:
            yield from their_rows(entry)
