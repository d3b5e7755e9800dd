"""The blocks that are to be found, and each of them removed alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from accuracy_sheet import Sheet
from collection import collection

from onnxprune.channels.blocks import Block
from onnxprune.channels.groups import analyze
from onnxprune.commands.inputs import Inputs, choose_inputs
from onnxprune.commands.slim import run
from onnxprune.errors import ValidationError
from onnxprune.model.io import load, to_proto
from onnxprune.plan.plan import Plan
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.slim import Recipe

LIMIT = 1e-4
"""Largest difference between a result and the file edited by hand, relative to the largest output."""


def residual_stages(each: int) -> tuple[str, ...]:
    """Returns the blocks of a CIFAR ResNet that keep the shape: all but the first of the second and third stage."""
    return tuple(
        f"/layer{stage}/layer{stage}.{place}" for stage in (1, 2, 3) for place in range(each) if place or stage == 1
    )


EXPECTED: dict[str, tuple[str, ...] | int] = {
    "cifar_resnet20": residual_stages(3),
    "cifar_resnet56": residual_stages(9),
    "resnet": ("/blocks/blocks.0", "/blocks/blocks.1", "/blocks/blocks.3"),
    "mobilenet": (
        "/blocks/blocks.0/body/body.2/body.2.0/Conv", "/blocks/blocks.0/body/body.4", "/blocks/blocks.1/body/body.4",
        "/blocks/blocks.2/body", "/blocks/blocks.3/body", "/blocks/blocks.4/body/body.2/body.2.0/Conv",
        "/blocks/blocks.4/body/body.4", "/head/head.1/HardSwish",
    ),
    "vit": tuple(f"/layers/layers.{layer}/{part}" for layer in range(4) for part in ("attention", "mlp")),
    "rapidocr_onnxruntime/ch_PP-OCRv4_rec_infer": (
        *(f"p2o.Conv.{place}" for place in (1, 3, 5, 6, 9, 10, 13, 14, 15, 16, 17, 18, 19, 20)), "p2o.Mul.126",
        "p2o.Conv.25", "p2o.Mul.140", *(f"p2o.Conv.{place}" for place in (28, 30, 31, 32)),
        *(f"p2o.Add.{place}" for place in (240, 250, 260, 270)),
    ),
    "bert": 4,
    "llama": 4,
}  # fmt: skip
"""Names of the blocks of which a fraction or number is dropped; exporters name those of the transformers in different
ways, so of these it is the number: attention and MLP of two layers."""


@dataclass(frozen=True)
class Alone:
    """What became of a network without one block: ``hand`` is the difference to the file edited by hand."""

    runs: bool
    proved: bool
    relative: float
    hand: float | None


def known(nets: Path | None, zoo: Path | None) -> Iterator[tuple[str, str, Path]]:
    """Yields a label, the key of what is expected, and the file of every network whose blocks are known."""
    for path in [] if nets is None else sorted(nets.glob("*.onnx")):
        if path.stem in EXPECTED:
            yield path.stem, path.stem, path
    for entry in collection():
        if entry.name in EXPECTED and (nets is None or entry.path.parent != nets):
            yield entry.name.split("/")[-1], entry.name, entry.path
    for path in [] if zoo is None else sorted(zoo.glob("*.onnx")):
        key = path.name.split(".")[0].removeprefix("transformers_")
        if key in ("bert", "llama") and ".int8." not in path.name:
            yield path.stem, key, path


def blocks_table(sheet: Sheet, nets: Path | None, zoo: Path | None, only: Sequence[str]) -> None:
    """Adds a row for each network."""
    sheet.add(
        "blocks that count (outermost, can be dropped): expected and found; within: others within them; refused: those "
        "with a reason",
        "each of them, and each within, removed alone: ONNX Runtime runs it; the proof holds, and its largest relative "
        f"difference (limit {LIMIT:.0e});",
        "by hand: outputs equal those of the original file in which what reads the exit was made to read the entry",
        f"{'network':<34} {'expected':>8} {'found':>5} {'within':>6} {'refused':>7} {'runs':>7} {'proved':>7} "
        f"{'largest':>8} {'by hand':>7} {'largest':>8}",
    )
    for label, key, path in known(nets, zoo):
        if not only or any(word in label for word in only):
            sheet.row(f"{label:<34}", partial(_row, label, key, path))


def _row(label: str, key: str, path: Path) -> str:
    graph = load(str(path))
    inputs = choose_inputs(to_proto(graph), Recipe(layers=1))
    blocks = analyze(graph, inputs.sizes).blocks
    counted = [block.name for block in blocks if block.counts]
    free = [block for block in blocks if block.reason is None]
    tried = [removed_alone(path, block, inputs) for block in free]
    by_hand = [one.hand for one in tried if one.hand is not None]
    expected = EXPECTED[key]
    wanted = expected if isinstance(expected, int) else len(expected)
    right = len(counted) == expected if isinstance(expected, int) else sorted(counted) == sorted(expected)
    good = right and all(one.runs and one.proved for one in tried) and all(one <= LIMIT for one in by_hand)
    return (
        f"{label:<34} {wanted:>8} {len(counted):>5} {len(free) - len(counted):>6} {len(blocks) - len(free):>7} "
        f"{_share([one.runs for one in tried]):>7} {_share([one.proved for one in tried]):>7} "
        f"{max((one.relative for one in tried), default=0):>8.0e} {_share([one <= LIMIT for one in by_hand]):>7} "
        f"{max(by_hand, default=0):>8.0e}{'' if good else '  MISSED'}"
    )


def _share(good: Sequence[bool]) -> str:
    return f"{sum(good)}/{len(good)}"


def removed_alone(path: Path, block: Block, inputs: Inputs) -> Alone:
    """Returns what becomes of a network without one block."""
    recipe = Recipe(plan=Plan({}, {}, blocks=(block.name,)), no_latency=True)
    try:
        result = run(str(path), recipe)
    except ValidationError:
        return Alone(False, False, float("inf"), None)
    proof = result.report.proof
    relative = float("inf") if proof.relative is None else proof.relative
    return Alone(True, bool(proof.passed), relative, _difference(result.model, by_hand(path, block), inputs.proof))


def by_hand(path: Path, block: Block) -> onnx.ModelProto | None:
    """Returns the original file with one edit: what made the exit makes another tensor, and the exit is the entry.

    ``None`` where the file has no such tensors, because they came about when it was read.
    """
    model = onnx.load(path)
    made = {name: place for place, node in enumerate(model.graph.node) for name in node.output}
    if block.exit not in made or not (block.entry in made or block.entry in {one.name for one in model.graph.input}):
        return None
    place = made[block.exit]
    node = model.graph.node[place]
    node.output[list(node.output).index(block.exit)] = f"{block.exit} without readers"
    model.graph.node.insert(place + 1, onnx.helper.make_node("Identity", [block.entry], [block.exit]))
    return model


def _difference(
    model: onnx.ModelProto, reference: onnx.ModelProto | None, feeds: Sequence[Mapping[str, np.ndarray]]
) -> float | None:
    if reference is None:
        return None
    options = SessionOptions(optimize=False)
    found, expected = open_session(model, options), open_session(reference, options)
    worst = 0.0
    for feed in feeds:
        left, right = found.run(feed), expected.run(feed)
        for name, value in right.items():
            scale = float(np.abs(value).max()) or 1.0
            worst = max(worst, float(np.abs(left[name].astype(np.float64) - value).max()) / scale)
    return worst
