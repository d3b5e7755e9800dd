"""Options that several commands share, and their types. Heavy modules are imported when a command runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.commands.process import logs

SOURCES = "Samples: .npz, .npy, a folder of .npz or of images, or script.py[:function]."


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic in newer versions of click only


class Shape(ParamType):
    """``NAME:1x3x224x224``."""

    name = "NAME:1x3x224x224"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Returns the name and the sizes."""
        name, _, sizes = str(value).rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split("x")) if sizes else ()
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            self.fail(f"{value!r} is not NAME:SIZExSIZE..., such as image:1x3x224x224", param, ctx)
        return name, shape


class RoundTo(ParamType):
    """``auto`` or a whole number."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Returns the word or the number."""
        if value == "auto":
            return "auto"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither 'auto' nor a whole number from 1 on", param, ctx)
        return int(value)


class Layers(ParamType):
    """A fraction or a whole number."""

    name = "R|K"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | int:
        """Returns the number."""
        text = str(value)
        try:
            return int(text) if text.isdecimal() and int(text) else float(text)
        except ValueError:
            self.fail(f"{value!r} is neither a fraction such as 0.25 nor a whole number", param, ctx)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that every command has, sets up logging, and passes on the rest."""

    @click.option("--json", "as_json", is_flag=True, help="Print the JSON report on stdout and nothing else there.")
    @click.option(
        "--report",
        "reports",
        multiple=True,
        type=Path,
        metavar="FILE",
        help="Write a report; .json, .md or .html by suffix. Repeatable.",
    )
    @click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    @click.option(
        "-v",
        "--verbose",
        count=True,
        help="Say more: long lists in full, the log on stderr; twice also shows tracebacks.",
    )
    @click.option("--log-file", type=Path, metavar="FILE", help="Write the log there.")
    @functools.wraps(command)
    def wrapped(quiet: bool, verbose: int, log_file: Path | None, **options: Any) -> Any:
        from onnxprune.commands.files import check_outputs
        from onnxprune.report.files import check_suffix

        click.get_current_context().ensure_object(dict)["verbose"] = verbose
        for path in options["reports"]:
            check_suffix(path)
        texts = [*options["reports"], *([log_file] if log_file else [])]
        check_outputs((), texts, inputs_among(options), force=True)
        with logs(verbose, log_file):
            return command(quiet=quiet, **options)

    return wrapped


def inputs_among(options: Mapping[str, Any]) -> list[Path]:
    """Returns the files that a command reads: the models first; the script of ``script.py:function``."""
    names = ("model", "base", "candidate", "plan", "recipe", "data", "evaluation")
    read = [*options.get("models", ()), *(options[name] for name in names if options.get(name) is not None)]
    settings = Path(options.get("preprocess") or "")
    scripts = [Path(str(path).rpartition(":")[0]) for path in read if ".py:" in str(path)]
    return [*read, *scripts, *([settings] if settings.suffix.lower() in (".yaml", ".yml") else [])]


def machine(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say where to measure."""
    for option in (
        click.option(
            "--ep",
            type=click.Choice(["cpu", "cuda"]),
            default="cpu",
            show_default=True,
            help="Execution provider to run on.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads; the available cores by default."
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            metavar="N",
            default=0,
            show_default=True,
            help="Seed of all that is random.",
        ),
    ):
        command = option(command)
    return command


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what may change."""
    for option in (
        click.option(
            "--exclude", multiple=True, metavar="PATTERN", help="No groups, blocks and weights that match. Repeatable."
        ),
        click.option(
            "--include",
            multiple=True,
            metavar="PATTERN",
            help="Only groups, blocks and weights matching PATTERN: a name or glob, re:... or op:Conv. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def judging(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of samples, of the verdict on a result, and of what is written."""
    for option in (
        click.option("--force", is_flag=True, help="Replace existing files."),
        click.option("--dry-run", is_flag=True, help="Plan and count; write nothing."),
        click.option("--strict", is_flag=True, help="Write nothing where a goal is missed."),
        click.option("--no-latency", is_flag=True, help="Skip timing."),
        click.option(
            "--allow-random",
            is_flag=True,
            help="Without samples, take ranges and metrics on seeded random inputs; the report says so.",
        ),
        click.option(
            "--samples",
            type=click.IntRange(1),
            metavar="N",
            default=1024,
            show_default=True,
            help="Largest number of samples used of --data; of more, N are drawn by --seed.",
        ),
        preprocess_option,
        click.option("--metric", metavar="NAME", help="top1, top5, agreement, cosine or mse."),
        click.option(
            "--eval",
            "evaluation",
            type=Path,
            metavar="SRC",
            help="Samples for the verdict; the held-out last fifth of --data by default.",
        ),
        click.option("--data", type=Path, metavar="SRC", help=SOURCES),
    ):
        command = option(command)
    return command


def quantizing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how to quantize."""
    for option in (
        click.option(
            "--group-size",
            type=click.IntRange(0),
            metavar="N",
            default=64,
            show_default=True,
            help="Rows of a weight that share a scale under --weights; 0: all.",
        ),
        click.option(
            "--max-drop",
            type=float,
            metavar="X",
            help="Under --int8, lose at most this of the metric, such as 0.01; what costs most stays float.",
        ),
        click.option("--weights", metavar="NAME", help="Weights of matrix products alone: int8 or int4, in blocks."),
        click.option("--fp16", is_flag=True, help="Float16 for what stays float; inputs and outputs stay float32."),
        click.option(
            "--reduce-range/--no-reduce-range",
            default=None,
            help="Weights of 7 bits, for x86 without VNNI; by default what this machine needs.",
        ),
        click.option(
            "--calibration",
            metavar="NAME",
            default="auto",
            show_default=True,
            help="Ranges by minmax, percentile, entropy or mse; auto: the best for each tensor.",
        ),
    ):
        command = option(command)
    return command


shapes_option = click.option(
    "--input-shape",
    "input_shape",
    type=Shape(),
    metavar="NAME:1x3x224x224",
    multiple=True,
    help="Sizes of an input with free dimensions. Repeatable.",
)
preprocess_option = click.option(
    "--preprocess",
    metavar="KEYS",
    help="Applied to the samples as (x * scale - mean) / std, such as 'scale=1/255;mean=0.5;std=0.5', or a YAML file.",
)
root_option = click.option(
    "--external-root", type=Path, metavar="DIR", help="Admit links to weight files that resolve inside DIR."
)
output_option = click.option(
    "-o", "--output", type=Path, metavar="OUT", help="Where to write; <stem>.slim.onnx beside MODEL by default."
)
target_option = click.option(
    "--target",
    type=click.Choice(["ort-cpu", "ort-cuda", "tensorrt", "generic"]),
    default="ort-cpu",
    show_default=True,
    help="What the result is made for.",
)
memory_option = click.option(
    "--max-memory", metavar="SIZE", default="2GB", show_default=True, help="For what samples make of a model."
)
