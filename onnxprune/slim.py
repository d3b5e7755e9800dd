"""The one call: a model in, a smaller model and a report out.

Light to import, because the command line takes its options from here; the line itself is in ``commands.slim``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from onnxprune.plan.plan import Plan
    from onnxprune.report.schema import Report

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the fraction of it that is done."""


@dataclass(frozen=True)
class Recipe:
    """What to do, in the words of the command line; every field is an option of ``slim``.

    Attributes:
        channels: Fraction of the prunable units to remove, 0 <= channels < 1.
        plan: A plan to apply instead, or the path of a saved one.
        data: Samples, for the proof and, with their last fifth, for the verdict.
        eval: Samples for the verdict instead of the held-out part of ``data``.
        metric: Name of the metric of the verdict; by default what the samples allow.
        samples: Largest number of samples to use.
        score: Criterion; L2 norm by default.
        allocation: ``uniform`` or ``global``.
        round_to: Multiple for the channels that stay, or ``auto``.
        target: ``ort-cpu``, ``ort-cuda``, ``tensorrt`` or ``generic``.
        include: Selectors of groups that may shrink; all by default.
        exclude: Selectors of groups that stay.
        inexact: Also groups that pass through a statistic over their channels (normalization).
        input_shape: Concrete shapes of inputs with free dimensions.
        seed: Seed of everything that is random.
        ep: Execution provider to prove and measure on, ``cpu`` or ``cuda``.
        threads: Threads to measure with; the available cores by default.
        no_latency: Skip timing.
        dry_run: Plan and count only: no proof, no timing.
        external_root: Folder into which links to weight files may lead.
    """

    channels: float | None = None
    plan: Plan | str | os.PathLike[str] | None = None
    data: Any = None
    eval: Any = None
    metric: str | None = None
    samples: int = 1024
    score: str | None = None
    allocation: str | None = None
    round_to: int | str = "auto"
    target: str = "ort-cpu"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    inexact: bool = False
    input_shape: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    ep: str = "cpu"
    threads: int | None = None
    no_latency: bool = False
    dry_run: bool = False
    external_root: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class Result:
    """The smaller model, what was found on the way, and the plan that replays it.

    ``better`` is false where the result was measured to be slower than the original.
    """

    model: onnx.ModelProto
    report: Report
    plan: Plan
    better: bool = True
    external: bool = False

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the model, whole or not at all.

        Raises:
            UsageError: the file exists and ``overwrite`` is not set.
            OutputError: the file cannot be written.
        """
        from onnxprune.model.io import save

        save(self.model, path, overwrite=overwrite, external=self.external or None)

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Report:
        """Writes the model like :meth:`save` and returns the report with the path, digest and size of the file."""
        from onnxprune.report.build import describe_file

        self.save(path, overwrite=overwrite)
        return describe_file(self.report, path)


def slim(
    model: object,
    channels: float | None = None,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    data: Any = None,
    eval: Any = None,
    metric: str | None = None,
    samples: int = 1024,
    score: str | None = None,
    allocation: str | None = None,
    round_to: int | str = "auto",
    target: str = "ort-cpu",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    inexact: bool = False,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    ep: str = "cpu",
    threads: int | None = None,
    no_latency: bool = False,
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
    from onnxprune.commands.slim import run

    recipe = Recipe(
        channels=channels,
        plan=plan,
        data=data,
        eval=eval,
        metric=metric,
        samples=samples,
        score=score,
        allocation=allocation,
        round_to=round_to,
        target=target,
        include=_patterns(include),
        exclude=_patterns(exclude),
        inexact=inexact,
        input_shape=dict(input_shape or {}),
        seed=seed,
        ep=ep,
        threads=threads,
        no_latency=no_latency,
        dry_run=dry_run,
        external_root=external_root,
    )
    return run(model, recipe, progress)


def _patterns(given: Sequence[str] | str) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
