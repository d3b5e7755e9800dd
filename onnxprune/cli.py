"""The command line: parses, calls the API, prints. Heavy modules are imported when a command runs."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.commands.options import (
    SOURCES,
    Layers,
    RoundTo,
    common,
    inputs_among,
    judging,
    machine,
    memory_option,
    output_option,
    preprocess_option,
    quantizing,
    root_option,
    selecting,
    shapes_option,
    target_option,
)
from onnxprune.commands.process import bar, explain, silence_stdout, uninterrupted

if TYPE_CHECKING:
    from onnxprune.report.schema import Report

NOT_BETTER = VIOLATED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="onnxprune", message="onnxprune %(version)s")
def cli() -> None:
    """Make trained ONNX networks smaller and faster, on the file itself, and prove it."""


@cli.command(short_help="Say what is in MODEL, what can go, and what not.")
@click.argument("model", type=Path)
@click.option(
    "--group",
    multiple=True,
    metavar="PATTERN",
    help="Show what ties the groups matching PATTERN, as for --include of slim. Repeatable.",
)
@shapes_option
@root_option
@common
def inspect(
    model: Path,
    group: Sequence[str],
    input_shape: Sequence[tuple[str, tuple[int, ...]]],
    external_root: Path | None,
    as_json: bool,
    reports: Sequence[Path],
    quiet: bool,
) -> None:
    """Say what is in MODEL, what can go, and what is frozen and why."""
    with uninterrupted():
        from onnxprune.commands.inspect import inspect as run

    with bar(quiet=quiet) as progress:
        report = run(model, group=group, input_shape=dict(input_shape), external_root=external_root, progress=progress)
    deliver(report, as_json=as_json, reports=reports, quiet=quiet)


@cli.command(short_help="Remove channels, blocks or weights of MODEL, and prove the result.")
@click.argument("model", type=Path)
@output_option
@click.option(
    "--channels",
    type=float,
    metavar="RATIO",
    help="Remove this fraction (0 <= RATIO < 1) of the prunable channels; with samples, as many MACs as that.",
)
@click.option("--layers", type=Layers(), metavar="R|K", help="Drop this fraction, or this number, of the blocks.")
@click.option("--sparsity", type=float, metavar="R", help="Zero this fraction of the weights.")
@click.option("--threshold", type=float, metavar="T", help="Or: zero the weights of a smaller magnitude.")
@click.option("--nm", metavar="N:M", help="Or: keep N of every M consecutive input channels, such as 2:4.")
@click.option("--block", metavar="KxL", help="Zeros of --sparsity in blocks of outputs x inputs, such as 1x4.")
@click.option("--int8", is_flag=True, help="Then quantize to 8-bit integers for --target, on samples.")
@quantizing
@click.option("--max-macs", metavar="X", help="Or: keep at most this of the MACs, a fraction or such as 3GMAC.")
@click.option("--max-params", metavar="X", help="Or: keep at most this of the parameters, a fraction or such as 10M.")
@click.option(
    "--recipe", type=Path, metavar="FILE", help="YAML: these options, and rules with other amounts for other parts."
)
@click.option("--plan", type=Path, metavar="FILE", help="Apply a stored plan.")
@click.option("--save-plan", type=Path, metavar="FILE", help="Write the plan as JSON, replayable with --plan.")
@click.option(
    "--score",
    metavar="NAME",
    help="l2 (default), l1, batchnorm, random; with samples obs (default), activation, variance.",
)
@click.option(
    "--layer-score",
    metavar="NAME",
    help="Which blocks go: parameters (default); with samples repaired (default where quick), divergence, cosine.",
)
@click.option(
    "--mask-score",
    metavar="NAME",
    help="Which weights go: magnitude (default); with samples alps (default), sparsegpt or wanda.",
)
@click.option(
    "--recover",
    metavar="NAME",
    help="Repair on samples: least-squares (default), statistics or bias; without: none (default) or fold.",
)
@memory_option
@click.option(
    "--allocation",
    metavar="NAME",
    help="uniform (default), global, per-mac, measured; with samples the best of them by default.",
)
@click.option(
    "--round-to",
    type=RoundTo(),
    metavar="auto|N",
    default="auto",
    show_default=True,
    help="Keep channel counts at multiples of N; auto: what the target likes.",
)
@target_option
@click.option(
    "--nm-min-channels",
    type=click.IntRange(1),
    metavar="N",
    help="Under --nm, operators of fewer channels stay dense; 256 for tensorrt, else any.",
)
@click.option(
    "--store-sparse",
    type=click.Choice(["auto", "never", "always"]),
    default="auto",
    show_default=True,
    help="Store weights with many zeros in sparse form, for ONNX Runtime.",
)
@selecting
@click.option("--inexact", is_flag=True, help="Also groups whose statistic over channels is not kept exact.")
@judging
@shapes_option
@root_option
@machine
@common
def slim(model: Path, **options: Any) -> None:
    """Remove channels, blocks or weights of MODEL, quantize it, prove the result, measure it, and write it."""
    write_smaller(model, options)


@cli.command(short_help="Quantize MODEL to 8-bit integers, and measure the result.")
@click.argument("model", type=Path)
@output_option
@target_option
@quantizing
@selecting
@memory_option
@judging
@shapes_option
@root_option
@machine
@common
def quantize(model: Path, **options: Any) -> None:
    """Quantize MODEL for a target: slim with that step alone.

    To int8, which --fp16 puts beside float16 for the rest; --weights asks for something else, and so does --fp16 where
    the target has no int8. Ends with 1 where the result is not smaller and faster.
    """
    from onnxprune.quantize.targets import target_of

    refused = target_of(options["target"]).refused is not None
    integers = not options["weights"] and not (options["fp16"] and refused)
    write_smaller(model, {"int8": integers, "save_plan": None, **options})


def write_smaller(model: Path, options: Mapping[str, Any]) -> None:
    """Makes a smaller model, writes what was asked for, and ends with the code that says whether it is better."""
    from onnxprune.commands.files import check_outputs, default_output, write_text
    from onnxprune.slim import slim as run

    with uninterrupted():
        import onnxprune.commands.slim  # noqa: F401

    own = ("output", "save_plan", "force", "evaluation", "as_json", "reports", "quiet")
    output, save_plan, force, evaluation, as_json, reports, quiet = (options[name] for name in own)
    recipe = {name: value for name, value in options.items() if name not in own}
    recipe["input_shape"] = dict(options["input_shape"])
    target = output or default_output(model)
    written = [*([] if recipe["dry_run"] else [target]), *([save_plan] if save_plan else [])]
    check_outputs(written, reports, inputs_among({"model": model, "evaluation": evaluation, **recipe}), force=force)
    with bar(quiet=quiet) as progress:
        result = run(model, eval=evaluation, progress=progress, **recipe)
    kept = result.wanted or not recipe["strict"]
    if not kept:
        click.echo("onnxprune: a goal was missed and --strict was given: nothing was written", err=True)
    if not recipe["dry_run"] and kept:
        result.save(target, overwrite=force)
        click.get_current_context().obj["written"] = True
    if save_plan is not None and kept:
        write_text(save_plan, result.plan.to_json())
    deliver(result.report, as_json=as_json, reports=reports, quiet=quiet)
    if not (result.better and result.wanted):
        raise SystemExit(NOT_BETTER)


@cli.command(short_help="Hold CANDIDATE against BASE on samples.")
@click.argument("base", type=Path)
@click.argument("candidate", type=Path)
@click.option("--data", type=Path, metavar="SRC", required=True, help=SOURCES)
@click.option("--metric", metavar="NAME", help="top1, top5, agreement, cosine or mse.")
@preprocess_option
@click.option(
    "--samples",
    type=click.IntRange(1),
    metavar="N",
    help="Largest number of samples used, drawn by --seed; all by default.",
)
@click.option("--no-latency", is_flag=True, help="Skip timing.")
@root_option
@machine
@common
def compare(base: Path, candidate: Path, as_json: bool, reports: Sequence[Path], quiet: bool, **options: Any) -> None:
    """Hold CANDIDATE against BASE: accuracy, likeness of the outputs, latency."""
    with uninterrupted():
        from onnxprune.commands.compare import compare as run

    with bar(quiet=quiet) as progress:
        report = run(base, candidate, progress=progress, **options)
    deliver(report, as_json=as_json, reports=reports, quiet=quiet)


@cli.command(short_help="Measure the latency of models, taking turns.")
@click.argument("models", nargs=-1, required=True, type=Path, metavar="MODEL...")
@click.option(
    "--data", type=Path, metavar="SRC", help="Samples, of which one is run; a seeded random input by default."
)
@preprocess_option
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600, min_open=True),
    metavar="SECONDS",
    default=3.0,
    show_default=True,
    help="Time to measure each model for.",
)
@shapes_option
@root_option
@machine
@common
def bench(
    models: Sequence[Path],
    input_shape: Sequence[tuple[str, tuple[int, ...]]],
    as_json: bool,
    reports: Sequence[Path],
    quiet: bool,
    **options: Any,
) -> None:
    """Measure the latency of every MODEL, taking turns; the first is the baseline."""
    with uninterrupted():
        from onnxprune.commands.bench import bench as run

    with bar(quiet=quiet) as progress:
        report = run(models, input_shape=dict(input_shape), progress=progress, **options)
    deliver(report, as_json=as_json, reports=reports, quiet=quiet)


@cli.command(short_help="Say whether a target takes MODEL and runs it fast, and where its zeros are.")
@click.argument("model", type=Path)
@click.option("--nm", metavar="N:M", help="The pattern: N of every M consecutive input channels, such as 2:4.")
@click.option(
    "--target",
    type=click.Choice(["ort-cpu", "ort-cuda", "tensorrt", "generic"]),
    help="What it is to run on: its rules for quantized models.",
)
@click.option(
    "--nm-min-channels",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Operators of fewer channels may be dense.",
)
@shapes_option
@root_option
@common
def check(
    model: Path,
    input_shape: Sequence[tuple[str, tuple[int, ...]]],
    as_json: bool,
    reports: Sequence[Path],
    quiet: bool,
    **options: Any,
) -> None:
    """Say which rules of --target MODEL breaks, and where its zeros break --nm, node by node; ends with 1 if any."""
    with uninterrupted():
        from onnxprune.commands.check import check as run
        from onnxprune.report.findings import accepted
        from onnxprune.report.patterns import conforms

    with bar(quiet=quiet) as progress:
        report = run(model, input_shape=dict(input_shape), progress=progress, **options)
    deliver(report, as_json=as_json, reports=reports, quiet=quiet)
    if not (conforms(report) and accepted(report)):
        raise SystemExit(VIOLATED)


def deliver(report: Report, *, as_json: bool, reports: Sequence[Path], quiet: bool) -> None:
    """Prints a report, or what ties the groups that were selected, and writes the files that were asked for."""
    for path in reports:
        report.save(path)
    try:
        if as_json:
            click.echo(report.to_json(), nl=False)
        elif not quiet:
            from rich.console import Console

            from onnxprune.report.console import render, render_trees

            console = Console(width=None if sys.stdout.isatty() else 120)
            full = click.get_current_context().obj["verbose"] > 0
            (render_trees if report.selected else render)(report, console, full=full)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich ends the process where the reader of a pipe is gone
        silence_stdout()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code: see the errors for which."""
    context: dict[str, Any] = {}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(arguments, "onnxprune", standalone_mode=False, obj=context)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if context.get("verbose", 0) > 1:
            traceback.print_exc()
        code = explain(error, context)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
