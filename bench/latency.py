"""Latency of every real model before and after removing channels, interleaved, with confidence intervals.

    python bench/latency.py [--only TEXT] [--ratio 0.5] [--round-to auto] [--threads N] [--save]

The ratio is after / before: 0.5 is twice as fast. A result that is slower than its original makes the exit code 1.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from collection import Entry, collection, keep

import onnxprune
from onnxprune.errors import OnnxPruneError, PlanError


def row(entry: Entry, ratio: float, round_to: int | str, threads: int | None) -> tuple[str, bool]:
    """Returns the line of one model, and whether it is not slower."""
    try:
        result = onnxprune.slim(entry.open(), ratio, round_to=round_to, threads=threads)
    except PlanError as error:
        return f"{entry.name:<48} {error}", True
    report = result.report
    ratios, before, after = report.ratios, report.before.latency_ms, report.after.latency_ms
    removed = "unknown" if ratios.macs is None else f"{1 - ratios.macs:.1%}"
    return (
        f"{entry.name:<48} {before.median:>9.3f} {after.median:>9.3f} {ratios.latency.median:>7.3f} "
        f"{ratios.latency.low:>7.3f} {ratios.latency.high:>7.3f} {removed:>7}"
        f"{'' if result.better else '  SLOWER'}",
        result.better,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--round-to", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", action="store_true", help="keep the table in bench/results/latency.txt")
    options = parser.parse_args()
    round_to = options.round_to if options.round_to == "auto" else int(options.round_to)
    lines: list[str] = []
    good = True
    head = f"{'model':<48} {'before ms':>9} {'after ms':>9} {'ratio':>7} {'low':>7} {'high':>7} {'MACs':>7}"
    for entry in collection():
        if options.only not in entry.name:
            continue
        if not lines:
            found = onnxprune.inspect(entry.open()).environment
            lines.append(f"ratio {options.ratio}, --round-to {round_to}; {found.cpu}, ONNX Runtime {found.onnxruntime}")
            lines.append(head)
            print("\n".join(lines))
        try:
            line, better = row(entry, options.ratio, round_to, options.threads)
        except OnnxPruneError as error:
            line, better = f"{entry.name:<48} ERROR {error}", False
        good &= better
        lines.append(line)
        print(line, flush=True)
    if options.save:
        keep("latency", "\n".join(lines) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
