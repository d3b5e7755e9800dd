"""A zoo of architectures with random weights, exported and pruned: one row for every file.

    python bench/zoo.py [--only TEXT] [--exporter both] [--opsets 17,18] [--seeds 3] [--ratios 0.3,0.5,0.7] [--save]

Needs the extra ``zoo``. Columns: prunable groups and units; MACs removed at 0.5 with ``--round-to 1``, then with
inexact groups too; what Torch-Pruning removes from the same network (``--torch-pruning``; "shape!" where it changed an
output); the largest difference between the masked original and the sliced model relative to the largest magnitude,
over all seeds and ratios with random scores; seconds for analysis, and for analysis, planning and surgery. Below a
row: why groups are frozen. Exports are kept in ``--cache``. The exit code is 1 where an export could not be pruned and
proved.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent))

import torch
from zoo_export import Target, cached, exported, time_limit, torch_pruning_share
from zoo_full import full_architectures
from zoo_network import Architecture
from zoo_odd import odd_architectures
from zoo_own import own_architectures
from zoo_timm import timm_architectures
from zoo_torchvision import torchvision_architectures
from zoo_transformers import transformers_architectures

from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.evidence import check_model
from onnxprune.commands.inputs import Inputs, choose_inputs
from onnxprune.errors import ModelError
from onnxprune.model.cost import cost
from onnxprune.model.io import load, to_proto
from onnxprune.plan.plan import plan, why_nothing
from onnxprune.report.build import worth_telling
from onnxprune.runtime.session import SessionOptions, environment, open_session
from onnxprune.score.scores import score
from onnxprune.slim import Recipe
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

OPTIONS = SessionOptions(threads=1)

ENDS = (".onnx", ".refused")

EXPORTERS = ("torchscript", "dynamo")

OPSETS = {"torchscript": (13, 17, 18, 19, 20), "dynamo": (18, 19, 20, 23), "ort": (17,), "int8": (17,)}
"""The newer exporter writes opset 18 and later only. ``ort`` and ``int8`` are made from the export at opset 17."""

DERIVED = re.compile(
    r"torchvision/(resnet18|mobilenet_v2|efficientnet_b0|shufflenet_v2_x1_0|vit|swin)$|own/(unet|lstm_tagger|yolo_c2f)$"
    r"|transformers/(bert|gpt2|llama|t5|whisper|vit)$"
)
"""What is also pruned after runtime optimization (``ort``) and after static quantization (``int8``)."""


DRAWS = ("all", "pairs", "rest")
"""Which seeds are tried at which ratios."""


@dataclass(frozen=True)
class Settings:
    """What is run on every file."""

    seeds: int
    ratios: tuple[float, ...]
    cache: Path
    torch_pruning: str
    limit_s: int
    reasons: int
    draws: str = "all"


@dataclass(frozen=True)
class Row:
    """What came out for one file; ``status`` is ok, inexact (nothing exact can go), no export, DIFFERS or ERROR."""

    name: str
    target: Target
    status: str
    text: str
    seconds: float = 0.0
    reasons: tuple[str, ...] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether the row shows a fault of ours."""
        return self.status in ("DIFFERS", "ERROR")

    def lines(self) -> list[str]:
        """The row and what stands below it."""
        label = f"{self.target.exporter:<11} {self.target.opset:>2}"
        return [f"{self.name:<44} {label} {self.text} {'' if self.status == 'ok' else self.status}", *self.reasons]


def architectures() -> Iterator[Architecture]:
    """Yields every architecture of the zoo."""
    yield from own_architectures()
    yield from odd_architectures()
    yield from torchvision_architectures()
    yield from timm_architectures()
    yield from transformers_architectures()
    yield from full_architectures()


def run_row(name: str, target: Target, settings: Settings) -> Row:
    """Exports, prunes and proves; never raises."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    start = time.perf_counter()
    try:
        with time_limit(settings.limit_s):
            architecture = next(item for item in architectures() if item.name == name)
            path = exported(architecture, target, settings.cache)
            if isinstance(path, str):
                return Row(name, target, "no export", path, time.perf_counter() - start)
            return _judge(architecture, target, path, settings)
    except Exception as error:  # one row must not end the others
        return Row(name, target, "ERROR", f"{type(error).__name__}: {error}"[:600], time.perf_counter() - start)


def _judge(architecture: Architecture, target: Target, path: Path, settings: Settings) -> Row:
    graph = load(str(path))
    model = to_proto(graph)
    try:
        session = open_session(model, OPTIONS)
        inputs = choose_inputs(model, Recipe(channels=0.5, threads=1))
        for feed in inputs.proof:
            session.run(feed)
    except ModelError as error:
        return Row(architecture.name, target, "no export", f"the export does not run: {error}"[:160])
    start = time.perf_counter()
    channels = analyze(graph, inputs.sizes)
    analysed = time.perf_counter() - start
    reasons = tuple(frozen(channels, settings.reasons))
    rest = settings.draws == "rest"
    wide = None if rest else _half(model, analyze(graph, inputs.sizes, inexact=True), inputs)[0]
    if not channels.prunable and wide is None:
        return Row(architecture.name, target, "ERROR", why_nothing(channels), analysed, reasons)
    if not channels.prunable:
        text = f"{0:>5} {0:>6} {_share(0.0)} {_share(wide)}  all that could go is"
        return Row(architecture.name, target, "inexact", text, analysed, reasons)
    removed, seconds = (None, 0.0) if rest else _half(model, channels, inputs)
    worst, verdict = _prove_all(channels, inputs, settings)
    units = sum(group.units for group in channels.prunable)
    asked = settings.torch_pruning and re.search(settings.torch_pruning, architecture.name)
    theirs = torch_pruning_share(architecture, settings.cache) if asked else "-"
    text = (
        f"{len(channels.prunable):>5} {units:>6} {_share(removed)} {_share(wide)} {theirs:>13} {worst:>8.1e} "
        f"{analysed:>5.2f} {analysed + seconds:>5.2f}"
    )
    if verdict == "DIFFERS":
        return Row(architecture.name, target, verdict, text, seconds, reasons)
    return Row(architecture.name, target, "ok", f"{text} {verdict}", seconds, reasons)


def _share(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:>6.1%}"


def _half(model: onnx.ModelProto, channels: Channels, inputs: Inputs) -> tuple[float | None, float]:
    """Removes half of the units; returns the share of the MACs that went with them and the seconds that it took."""
    if not channels.prunable:
        return None, 0.0
    start = time.perf_counter()
    chosen = plan(channels, score(channels, "l2"), 0.5, round_to=1)
    small = slice_channels(channels, chosen.removals)
    seconds = time.perf_counter() - start
    _check_runs(model, to_proto(small), inputs)
    before, after = cost(channels.graph, shapes=channels.shapes), cost(small, channels.sizes)
    return 1 - after.macs / max(before.macs, 1), seconds


def _prove_all(channels: Channels, inputs: Inputs, settings: Settings) -> tuple[float, str]:
    """Returns the largest difference and what is to say about it: nothing, DIFFERS, or what float64 finds."""
    worst, doubted = 0.0, []
    pairs = list(zip(settings.ratios, range(settings.seeds), strict=False))
    every = list(itertools.product(settings.ratios, range(settings.seeds)))
    drawn = {"all": every, "pairs": pairs, "rest": [one for one in every if one not in pairs]}
    for ratio, seed in drawn[settings.draws]:
        removals = plan(channels, score(channels, "random", seed=seed), ratio, round_to=1).removals
        proof = prove(channels, removals, slice_channels(channels, removals), inputs.proof, OPTIONS)
        worst = max(worst, proof.relative)
        if not proof.passed:
            return worst, "DIFFERS"
        if proof.float64 is not None:
            doubted.append(proof.float64)
    return worst, f"rounding, {max(doubted):.0e} in float64" if doubted else ""


def _check_runs(before: onnx.ModelProto, after: onnx.ModelProto, inputs: Inputs) -> None:
    """Checks that the result is valid, runs with optimizations on, and keeps names, types and shapes."""
    check_model(before, after)
    sessions = [open_session(model, OPTIONS) for model in (before, after)]
    for feed in inputs.proof:
        first, second = (session.run(feed) for session in sessions)
        if [(k, v.shape, v.dtype) for k, v in first.items()] != [(k, v.shape, v.dtype) for k, v in second.items()]:
            raise RuntimeError("the outputs of the pruned model have other names, types or shapes")
    if sessions[0].inputs != sessions[1].inputs:
        raise RuntimeError("the inputs of the pruned model have other names, types or shapes")


def frozen(channels: Channels, limit: int) -> list[str]:
    """Returns the reasons for frozen groups, most frequent first; node names are left out so that they add up."""
    counts = collections.Counter(
        re.sub(r"'[^']*'", "'…'", str(group.frozen))
        for group in channels.groups
        if group.frozen is not None and worth_telling(group)
    )
    return [f"{count:>12} x {reason}" for reason, count in counts.most_common(limit)]


def rows_of(jobs: list[tuple[str, Target]], settings: Settings, workers: int) -> Iterator[Row]:
    """Yields the rows, in order; each process is replaced after a while, because exporters keep memory."""
    if workers == 1:
        for name, target in jobs:
            yield run_row(name, target, settings)
        return
    import multiprocessing

    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), max_tasks_per_child=40) as pool:
        futures = [pool.submit(run_row, name, target, settings) for name, target in jobs]
        for (name, target), future in zip(jobs, futures, strict=True):
            try:
                yield future.result()
            except Exception as error:  # the process ended
                yield Row(name, target, "ERROR", f"the process ended: {error!r}"[:300])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression on names")
    parser.add_argument("--exporter", choices=[*OPSETS, "both", "all"], default="all")
    parser.add_argument("--opsets", default="", help="such as 13,17; all that the exporter supports by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratios", default="0.3,0.5,0.7")
    parser.add_argument("--cache", type=Path, help="folder that keeps the exports")
    parser.add_argument("--cached", action="store_true", help="only exports that were tried before")
    parser.add_argument("--torch-pruning", default="", help="compare the names that this regular expression finds")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one row")
    parser.add_argument("--reasons", type=int, default=6, help="reasons to print below a row")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument(
        "--draws", choices=DRAWS, default="all",
        help="pairs: each seed with one ratio, not with all of them; rest: what pairs leaves out, and nothing else",
    )  # fmt: skip
    parser.add_argument(
        "--save", nargs="?", const="zoo", metavar="NAME", help="keep the table in bench/results/NAME.txt"
    )
    options = parser.parse_args()
    names = [item.name for item in architectures() if re.search(options.only, item.name)]
    if options.list:
        print("\n".join(names))
        return 0
    wanted = {int(opset) for opset in options.opsets.split(",") if opset}
    jobs = [
        (name, Target(exporter, opset))
        for name in names
        for exporter, opsets in OPSETS.items()
        if options.exporter in (exporter, "all") or (options.exporter == "both" and exporter in EXPORTERS)
        for opset in opsets
        if not wanted or opset in wanted
        if exporter in EXPORTERS or DERIVED.search(name)
    ]
    with contextlib.ExitStack() as stack:
        cache = options.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cache.mkdir(parents=True, exist_ok=True)
        ratios = tuple(float(ratio) for ratio in options.ratios.split(","))
        settings = Settings(
            options.seeds, ratios, cache, options.torch_pruning, options.limit, options.reasons, options.draws
        )
        if options.cached:
            jobs = [job for job in jobs if any(cached(*job, cache).with_suffix(end).exists() for end in ENDS)]
        return _table(jobs, settings, options.jobs, options.save)


def _table(jobs: list[tuple[str, Target]], settings: Settings, workers: int, save: str | None) -> int:
    lines = [_machine(), HEAD]
    print("\n".join(lines), flush=True)
    rows = []
    for row in rows_of(jobs, settings, workers):
        rows.append(row)
        lines += row.lines()
        print("\n".join(row.lines()), flush=True)
    statuses = collections.Counter(row.status for row in rows)
    good = {row.name for row in rows if row.status == "ok"}
    lines.append(
        f"{len({row.name for row in rows})} architectures, {len(good)} of them pruned and proved; files: "
        + ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    )
    print(lines[-1])
    if save:
        (Path(__file__).parent / "results" / f"{save}.txt").write_text("\n".join(lines) + "\n")
    return 1 if any(row.failed for row in rows) else 0


HEAD = (
    f"{'architecture':<44} {'exporter':<11} op {'groups':>5} {'units':>6} {'MACs':>6} {'inex.':>6} "
    f"{'Torch-Pruning':>13} {'largest':>8} {'anal.':>5} {'s':>5}"
)


def _machine() -> str:
    found = environment(SessionOptions())
    return (
        f"{found['cpu']}, Python {platform.python_version()}, torch {torch.__version__}, onnx {found['onnx']}, "
        f"onnxruntime {found['onnxruntime']}"
    )


if __name__ == "__main__":
    sys.exit(main())
