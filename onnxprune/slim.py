"""The one call: a model in, a smaller model and a report out.

Light to import, because the command line takes its options from here; the line itself is in ``commands.slim``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from onnxprune.plan.plan import Plan
    from onnxprune.report.schema import Report

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the fraction of it that is done."""


@dataclass(frozen=True)
class Recipe:
    """What to do, in the words of the command line; every field is an option of ``slim``."""

    channels: float | None = None
    """Fraction of the prunable units to remove, 0 <= channels < 1."""
    layers: float | int | None = None
    """Blocks to drop before channels go: a fraction of the outermost ones that can go, or their number."""
    sparsity: float | None = None
    """Fraction of the weights to zero, after channels are gone."""
    threshold: float | None = None
    """Instead: zero all weights of a smaller magnitude."""
    nm: str | None = None
    """Instead: ``N:M``, keep N of every M consecutive input channels, such as ``2:4``."""
    block: str | None = None
    """``KxL``: the zeros of ``sparsity`` in blocks of output channels x input channels, such as ``1x4``."""
    int8: bool = False
    """Then quantize: 8-bit integers where the target computes in them, ranges and rounding from ``data``."""
    fp16: bool = False
    """Then float16 for what is float32; inputs and outputs stay as they are."""
    weights: str | None = None
    """Instead of ``int8``: weights alone, of matrix products, as ``int8`` or ``int4`` in blocks."""
    group_size: int = 64
    """Rows of a weight that share a scale under ``weights``: a power of 2 from 16 on; 0 for all of them."""
    max_drop: float | None = None
    """What may be lost of the metric on held-out samples by ``int8``, in points as a fraction, such as 0.01: the
    operators that cost most stay float until it holds."""
    calibration: str = "auto"
    """Ranges of what is computed: ``minmax``, ``percentile``, ``entropy``, ``mse``, or ``auto``, the best of them."""
    reduce_range: bool | None = None
    """Weights of 7 bits, for x86 without VNNI; by default what this machine needs, for ``ort-cpu``."""
    max_macs: float | str | None = None
    """Instead: what may stay of the multiply-accumulates, a fraction or a number such as ``3GMAC``."""
    max_params: float | str | None = None
    """Instead, or too: what may stay of the parameters, a fraction or a number such as ``10M``."""
    plan: Plan | str | os.PathLike[str] | None = None
    """A plan to apply instead, or the path of a saved one."""
    recipe: str | os.PathLike[str] | None = None
    """A YAML file with these options, and with rules that give other amounts to other parts of the model."""
    data: Any = None
    """Samples, for the proof and, with their last fifth, for the verdict: an array, a dict of arrays, an iterable of
    them, or the path of a file, a folder or a script."""
    eval: Any = None
    """Samples for the verdict instead of the held-out part of ``data``."""
    metric: str | None = None
    """Name of the metric of the verdict; by default what the samples allow."""
    preprocess: Any = None
    """What is done to the samples: text such as ``mean=0.5;std=0.5``, a dict with these keys, or a YAML file."""
    samples: int = 1024
    """Largest number of samples to use of ``data``; of more, that many are drawn by ``seed``."""
    allow_random: bool = False
    """Metrics, and what else is estimated from samples, may take random inputs where no samples are given."""
    score: str | None = None
    """``obs`` with ``data``, ``l2`` without; or ``l1``, ``batchnorm``, ``random``, ``activation``, ``variance``."""
    layer_score: str | None = None
    """Which blocks go first: ``divergence`` (default with ``data``), ``cosine`` or ``parameters``."""
    mask_score: str | None = None
    """Which weights become zero: ``alps`` (default with ``data``), ``sparsegpt``, ``wanda`` or ``magnitude``."""
    recover: str | None = None
    """Repair after the removal: ``least-squares`` by default with ``data``, ``none`` without; ``statistics``, ``bias``,
    and ``fold``, which needs no data."""
    max_memory: int | str = "2GB"
    """Memory for what samples make of a model, in bytes or with a unit; the rest goes to files."""
    allocation: str | None = None
    """``uniform``, ``global``, ``per-mac`` or ``measured``; by default with ``data`` the best of them, else uniform."""
    round_to: int | str = "auto"
    """Multiple for the channels that stay, or ``auto``."""
    target: str = "ort-cpu"
    """``ort-cpu``, ``ort-cuda``, ``tensorrt`` or ``generic``."""
    nm_min_channels: int | None = None
    """Operators with fewer input or output channels stay dense under ``nm``; 256 for ``tensorrt``, else any."""
    store_sparse: str = "auto"
    """Store weights with many zeros in sparse form: ``auto`` where that is smaller, ``never`` or ``always``."""
    include: Sequence[str] | str = ()
    """Selectors of groups, blocks and weights that may change; all by default."""
    exclude: Sequence[str] | str = ()
    """Selectors of groups, blocks and weights that stay."""
    inexact: bool = False
    """Also groups with a statistic over their channels (a normalization) that is not kept exact."""
    input_shape: Mapping[str, Sequence[int]] | None = None
    """Concrete shapes of inputs with free dimensions."""
    seed: int = 0
    """Seed of everything that is random."""
    ep: str = "cpu"
    """Execution provider to prove and measure on, ``cpu`` or ``cuda``."""
    threads: int | None = None
    """Threads to measure with; the available cores by default."""
    no_latency: bool = False
    """Skip timing."""
    strict: bool = False
    """Write nothing where a budget is missed; the result says so in ``met``."""
    dry_run: bool = False
    """Plan and count only: no proof, no timing."""
    external_root: str | os.PathLike[str] | None = None
    """Folder into which links to weight files may lead."""


@dataclass
class Result:
    """The smaller model, what was found on the way, and the plan that replays it.

    ``better`` is false where the result was measured to be slower than the original, or is quantized and not both
    smaller and faster; ``met`` is false where it exceeds a budget.
    ``store_sparse`` says whether weights with many zeros are saved in sparse form.
    """

    model: onnx.ModelProto
    report: Report
    plan: Plan
    better: bool = True
    met: bool = True
    quantized: bool = False
    external: bool = False
    store_sparse: str = "never"

    @property
    def wanted(self) -> bool:
        """Whether it is what was asked for: within its budgets, and better where that was all that it was for."""
        return self.met and (self.better or not self.quantized)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the model, whole or not at all; from then on ``report`` holds the path and the digest of the file.

        Raises:
            UsageError: the file exists and ``overwrite`` is not set.
            OutputError: the file cannot be written.
        """
        from onnxprune.model.io import save
        from onnxprune.report.build import describe_file

        save(self.model, path, overwrite=overwrite, external=self.external or None, store_sparse=self.store_sparse)
        self.report = describe_file(self.report, path)


def slim(
    model: object,
    channels: float | None = None,
    *,
    layers: float | int | None = None,
    sparsity: float | None = None,
    threshold: float | None = None,
    nm: str | None = None,
    block: str | None = None,
    int8: bool = False,
    fp16: bool = False,
    weights: str | None = None,
    group_size: int = 64,
    max_drop: float | None = None,
    calibration: str = "auto",
    reduce_range: bool | None = None,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] | None = None,
    data: Any = None,
    eval: Any = None,
    metric: str | None = None,
    preprocess: Any = None,
    samples: int = 1024,
    allow_random: bool = False,
    score: str | None = None,
    layer_score: str | None = None,
    mask_score: str | None = None,
    recover: str | None = None,
    max_memory: int | str = "2GB",
    allocation: str | None = None,
    round_to: int | str = "auto",
    target: str = "ort-cpu",
    nm_min_channels: int | None = None,
    store_sparse: str = "auto",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    inexact: bool = False,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    ep: str = "cpu",
    threads: int | None = None,
    no_latency: bool = False,
    strict: bool = False,
    dry_run: bool = False,
    external_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Returns a smaller model, proved to be the original without the removed channels, and a report.

    ``model`` is a path, a ``ModelProto`` or a graphsurgeon graph, and is not changed. ``progress`` is called with the
    stage and the fraction of it that is done. Everything else is as in :class:`Recipe`.

    Raises:
        UsageError: an option is unknown or out of range, or nothing is asked for.
        ModelError: the model is invalid or ONNX Runtime cannot run it.
        CalibrationError: the samples do not fit the model.
        PlanError: nothing can be pruned, or the plan does not fit the model.
        ProviderError: the execution provider cannot run here.
        ValidationError: the proof failed.
    """
    given = locals()  # the signature repeats the fields of the recipe for editors and type checkers; a test compares
    from onnxprune.commands.slim import run

    return run(model, Recipe(**{item.name: given[item.name] for item in fields(Recipe)}), progress)
