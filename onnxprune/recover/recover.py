"""The public repair: a smaller model, the original and samples in; the same model with better weights out."""

import onnx_graphsurgeon as gs

from onnxprune import arguments
from onnxprune.channels.groups import Channels, analyze
from onnxprune.data.samples import Samples, load_samples
from onnxprune.errors import UsageError
from onnxprune.model.inline import without_functions
from onnxprune.model.io import Graph, load, to_proto
from onnxprune.model.normalize import prepare
from onnxprune.model.shapes import Shapes
from onnxprune.recover.alignment import align, rename
from onnxprune.recover.fold import fold
from onnxprune.recover.least_squares import Method, shift, solve, statistics
from onnxprune.recover.matching import find_removals
from onnxprune.recover.sequential import Calibration, Repaired, Settings, repair
from onnxprune.runtime.session import input_specs
from onnxprune.score.readings import feeds_of
from onnxprune.surgery.gone import Gone, Removals

METHODS: dict[str, Method] = {"least-squares": solve, "statistics": statistics, "bias": shift}
"""Methods that are fitted to samples."""

FOLD = "fold"
"""The method that needs none."""


def recover(
    pruned: object,
    original: object,
    data: object = None,
    method: str = "least-squares",
    *,
    samples: int = 1024,
    seed: int = 0,
    max_memory: int | str = "2GB",
) -> Graph:
    """Returns a copy of a smaller model, repaired toward the original, on samples or from the weights alone.

    Args:
        pruned: The smaller model: a path, a ``ModelProto`` or a graph. Channels, blocks or single weights may be
            gone, by this package or another tool; weights that were set to zero stay zero. Its nodes are found in the
            original by the names of their results or of their weights.
        original: The model that it was made from.
        data: Unlabelled calibration samples, in any form that ``slim`` takes; the last fifth judges the repair.
        method: ``least-squares``, ``statistics`` or ``bias``, or ``fold``, which needs no samples.
        samples: Largest number of samples to use.
        seed: Seed of the rows of samples that are read.
        max_memory: Bytes that may be used for what the models compute; the rest goes to files.

    Raises:
        UsageError: there is no such method, or it needs samples.
        PlanError: the models do not belong together.
        CalibrationError: the samples do not fit.
    """
    memory = arguments.size(max_memory, "--max-memory")
    seed = arguments.whole(seed, "--seed")
    sampled = needs_samples(method)
    if sampled and data is None:
        raise UsageError(f"the repair {method!r} is fitted to samples: give data, or choose {FOLD!r}")
    channels = original if isinstance(original, Channels) else analyze(original)
    small = without_functions(load(pruned))
    prepare(small)
    names = align(small, channels.graph)
    removals = find_removals(channels, small)
    if sampled:
        source = load_samples(data, input_specs(to_proto(channels.graph)), limit=samples, seed=seed)  # type: ignore[arg-type]
        settings = Settings(method_of(method), memory=memory)
        result, _ = repaired(
            small, channels, removals, calibration(source, channels.graph, channels.shapes, seed), settings
        )
    else:
        result, _ = fold(small, channels, removals)
    rename(result, names)
    return result


def needs_samples(name: str) -> bool:
    """Returns whether a method of repair is fitted to samples.

    Raises:
        UsageError: there is none of that name.
    """
    chosen = arguments.word(name, "--recover")
    if chosen not in (*METHODS, FOLD):
        raise UsageError(f"there is no repair {chosen!r}: choose one of {', '.join(METHODS)}, {FOLD}")
    return chosen != FOLD


def method_of(name: str) -> Method:
    """Returns a method of repair that is fitted to samples, by name.

    Raises:
        UsageError: there is none of that name.
    """
    if not needs_samples(name):
        raise UsageError(f"the repair {name!r} is not fitted to samples: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def calibration(samples: Samples, graph: Graph, shapes: Shapes, seed: int) -> Calibration:
    """Returns runs to fit, and the held-out fifth to judge by."""
    fitted, held_out = (feeds_of(part, graph, shapes) for part in samples.split())
    return Calibration(fitted, held_out, seed)


def repaired(
    pruned: gs.Graph,
    channels: Channels,
    removals: Removals,
    runs: Calibration,
    settings: Settings,
    original: Graph | None = None,
) -> tuple[Graph, list[Repaired]]:
    """Returns a repaired copy of the pruned graph, and what became of every operator behind the first change.

    The ``original`` is what was analyzed, or has blocks that it had lost by then.
    """
    return repair(pruned, channels.graph if original is None else original, Gone(channels, removals), runs, settings)
