"""The real models that tests and benchmarks run over: those of this repository, of installed packages, of a folder.

Packages with models are optional (``make test`` installs them); a folder of further models can be named in the
environment variable ``ONNXPRUNE_ZOO``.
"""

import datetime
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent

PACKAGED = {
    "rapidocr_onnxruntime": "models/*.onnx",
    "magika": "models/standard_v3_3/model.onnx",
    "silero_vad": "data/*.onnx",
    "basic_pitch": "saved_models/**/*.onnx",
}


@dataclass(frozen=True)
class Entry:
    """A model by name; ``open`` returns it anew."""

    name: str
    path: Path
    open: Callable[[], onnx.ModelProto]


def collection() -> list[Entry]:
    """Returns every model that can be found on this machine."""
    entries = [_file(path) for path in sorted((ROOT / "models").glob("*.onnx"))]
    if zoo := os.environ.get("ONNXPRUNE_ZOO"):
        entries += [_file(path) for path in sorted(Path(zoo).glob("*.onnx"))]
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    entries += [Entry(path.stem, path, lambda p=path: with_random_weights(p)) for path in sorted(light.glob("*.onnx"))]
    for package, pattern in PACKAGED.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            entries += [_file(path, package) for path in sorted(folder.glob(pattern))]
    return entries


def with_random_weights(path: Path, seed: int = 0) -> onnx.ModelProto:
    """Returns a model whose generated constant weights became initializers with seeded random values.

    The light models of the onnx package make every weight with ConstantOfShape, all elements equal, so that a wrong
    slice would pass unseen. Scales follow He et al. 2015, so that magnitudes stay in range through deep networks.
    """
    model = onnx.load(path)
    random = np.random.default_rng(seed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in stored:
            kept.append(node)
            continue
        shape = numpy_helper.to_array(stored[node.input[0]]).tolist()
        if len(shape) > 1:
            values = random.standard_normal(shape) * np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
        else:
            values = random.uniform(0.5, 1.5, shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        if model.ir_version < 4:
            model.graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], 1, shape))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def keep(name: str, table: str) -> None:
    """Writes the last table of a benchmark into bench/results/, with the machine it was made on."""
    from onnxprune.runtime.session import environment

    found = environment()
    machine = (
        f"{found['cpu']}, {found['threads']} cores, ONNX Runtime {found['onnxruntime']}, onnx {found['onnx']}, "
        f"Python {platform.python_version()}, {datetime.date.today()}\n"
    )
    folder = ROOT / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(machine + table)


def _file(path: Path, package: str | None = None) -> Entry:
    name = path.stem if package is None else f"{package}/{path.stem}"
    return Entry(name, path, lambda: onnx.load(path))
