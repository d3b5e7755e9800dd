"""Sessions of ONNX Runtime with explicit providers and threads, and errors in the words of this package."""

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as native

from onnxprune.errors import ModelError, ProviderError, UnsupportedOpError, UsageError
from onnxprune.model.io import model_bytes, save, to_proto

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Protobuf refuses messages of 2 GiB; the graph around the weights needs some room too.
_INLINE_BYTES = 1_900_000_000

_FATAL = 4  # log severity: what fails arrives as an exception, so the same words need not appear on stderr as well

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
}

_ELEMENT_TYPES = {int(helper.np_dtype_to_tensor_dtype(dtype)): dtype for dtype in _DTYPES.values()}

_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    native.EPFail,
    native.EngineError,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    TypeError,
    ValueError,
)

_MISSING_OPERATOR = (
    re.compile(r"No Op registered for ([\w.]+)"),
    re.compile(r"Could not find an implementation for (?:the node )?(?:[^\s:]*:)?([\w.]+)\(\d+\)"),
    re.compile(r"Fatal error: ([\w.:]+)\(-?\d+\) is not a registered function/op"),
)


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: free dimensions are names, or None where the model gives no name."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class SessionOptions:
    """Where and how a model runs; ``threads=None`` takes the cores available to this process.

    ``integers=False`` computes what stands between Q and DQ in floats, as written; ``optimized`` is a file to which the
    runtime writes the model as it runs it.
    """

    provider: str = "cpu"
    threads: int | None = None
    optimize: bool = True
    profile_prefix: str | None = None
    integers: bool = True
    optimized: Path | None = None


class Session:
    """A model that is ready to run.

    Attributes:
        inputs: Names, types and shapes of the inputs.
        outputs: Names of the outputs.
        provider: The execution provider that the session really uses, such as ``CPUExecutionProvider``.
        threads: The number of threads that was set.
    """

    def __init__(self, native_session: Any, threads: int, temporary: Path | None = None) -> None:
        self._session = native_session
        self.threads = threads
        self.provider: str = native_session.get_providers()[0]
        try:
            self.inputs = tuple(_input_spec(argument) for argument in native_session.get_inputs())
            self.outputs: tuple[str, ...] = tuple(argument.name for argument in native_session.get_outputs())
        except UnicodeDecodeError as error:
            raise ModelError("an input or output has a name that is not UTF-8: rename it, or export again") from error
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Returns the values of the named outputs (all when None) by name.

        Raises:
            ModelError: ONNX Runtime cannot run the model on these feeds.
        """
        names = list(self.outputs if outputs is None else outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except _RUNTIME_ERRORS as error:
            raise ModelError(
                f"ONNX Runtime cannot run the model ({_sentence(error)}): give other inputs, or export it again"
            ) from error
        return dict(zip(names, values, strict=True))

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Returns a function that runs the model once on these feeds, for timing.

        On CUDA the inputs are copied to the device here and the outputs stay there, so the copies are excluded.
        """
        if self.provider == _PROVIDERS["cuda"]:
            return self._prepare_on_device(feeds)
        session, names, inputs = self._session, list(self.outputs), dict(feeds)
        self.run(feeds)

        def run_once() -> None:
            session.run(names, inputs)

        return run_once

    def end_profiling(self) -> Path:
        """Returns the profile file; the session must have been opened with a ``profile_prefix``."""
        return Path(self._session.end_profiling())

    def _prepare_on_device(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        session, binding = self._session, self._session.io_binding()
        try:
            for name, array in feeds.items():
                value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
                binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, "cuda")
            session.run_with_iobinding(binding)
        except _RUNTIME_ERRORS as error:
            raise ModelError(
                f"ONNX Runtime cannot run the model ({_sentence(error)}): give other inputs, or export it again"
            ) from error

        def run_once() -> None:
            session.run_with_iobinding(binding)

        return run_once


def open_session(
    model: onnx.ModelProto | gs.Graph | str | os.PathLike[str], options: SessionOptions | None = None
) -> Session:
    """Returns a session for a model in memory or in a file; the model is not changed.

    Given a graph, less memory is taken: its message is gone before the runtime reads what was written of it.

    Raises:
        UsageError: The provider is unknown, or the number of threads is not positive.
        ProviderError: The provider that was asked for does not run here.
        UnsupportedOpError: ONNX Runtime has no implementation of an operator.
        ModelError: ONNX Runtime cannot load the model, or an input is no tensor of numbers.
    """
    options = options or SessionOptions()
    _check(options)
    threads = options.threads or available_threads()
    if isinstance(model, str | os.PathLike):
        return Session(_open(os.fspath(model), options, threads), threads)
    model = to_proto(model) if isinstance(model, gs.Graph) else model
    half = _holds_half(model)
    if model_bytes(model) < _INLINE_BYTES:
        content = bytes(model.SerializeToString())
        del model
        return Session(_open(content, options, threads, half=half), threads)
    folder = Path(tempfile.mkdtemp(prefix="onnxprune-"))
    try:
        path = folder / "model.onnx"
        save(model, path, external=True)
        session = Session(_open(str(path), options, threads, half=half), threads, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return session


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Returns the inputs of a model as its session would, without opening one.

    Raises:
        ModelError: an input is no tensor of numbers.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return tuple(_declared_spec(value) for value in model.graph.input if value.name not in stored)


def check_provider(options: SessionOptions) -> None:
    """Checks what can be told without a model.

    Raises:
        UsageError: The provider is unknown, or the number of threads is not positive.
        ProviderError: This build of ONNX Runtime does not have the provider.
    """
    _check(options)
    wanted = _PROVIDERS[options.provider]
    if wanted not in ort.get_available_providers():
        raise ProviderError(f"this build of ONNX Runtime has no {wanted}: install onnxruntime-gpu, or use --ep cpu")


def environment(options: SessionOptions | None = None) -> dict[str, str | int]:
    """Returns versions and hardware, to stand beside every measured number.

    ``provider`` is the one that was asked for: a session that does not get it is an error.
    """
    options = options or SessionOptions()
    _check(options)
    return {
        "onnxprune": _version("onnxprune"),
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "provider": _PROVIDERS[options.provider],
        "cpu": _cpu_name(),
        "threads": options.threads or available_threads(),
    }


def available_threads() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check(options: SessionOptions) -> None:
    if options.provider not in _PROVIDERS:
        known = ", ".join(_PROVIDERS)
        raise UsageError(f"the execution provider {options.provider!r} is unknown: choose one of {known}")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"the number of threads is {options.threads}, but must be at least 1")


def _holds_half(model: onnx.ModelProto) -> bool:
    """Whether a model computes in float16, as far as what it stores, casts and declares tells."""
    half = onnx.TensorProto.FLOAT16
    casts = (item.i for node in model.graph.node if node.op_type == "Cast" for item in node.attribute)
    values = (value.type.tensor_type.elem_type for value in model.graph.input)
    return any(kind == half for kind in (*(tensor.data_type for tensor in model.graph.initializer), *casts, *values))


def _open(model: str | bytes, options: SessionOptions, threads: int, *, half: bool = False) -> Any:
    # Failing to load CUDA is reported by the default logger, which session options do not reach.
    ort.set_default_logger_severity(_FATAL)
    check_provider(options)
    wanted = _PROVIDERS[options.provider]
    providers = list(dict.fromkeys([wanted, _PROVIDERS["cpu"]]))
    try:
        session = ort.InferenceSession(
            model,
            _native_options(options, threads),
            providers=providers,
            enable_fallback=0,
            # It crashes where a Transpose feeds a product of float16 numbers (ONNX Runtime 1.31 on x86).
            disabled_optimizers=["NchwcTransformer"] if half else None,
        )
    except _RUNTIME_ERRORS as error:
        raise _load_error(error) from error
    if wanted not in session.get_providers():
        raise ProviderError(
            f"ONNX Runtime could not start {wanted} on this machine: install its driver and libraries, or use --ep cpu"
        )
    session._model_bytes = None  # kept by ONNX Runtime for a fallback that is switched off: the whole model once more
    return session


def _native_options(options: SessionOptions, threads: int) -> Any:
    result = ort.SessionOptions()
    result.intra_op_num_threads = threads
    result.inter_op_num_threads = 1
    result.log_severity_level = _FATAL
    result.add_session_config_entry("session.intra_op.allow_spinning", "0")
    result.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not options.optimize:
        result.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not options.integers:
        result.add_session_config_entry("session.disable_quant_qdq", "1")
    if options.optimized is not None:
        result.optimized_model_filepath = str(options.optimized)
    if options.profile_prefix is not None:
        result.enable_profiling = True
        result.profile_file_prefix = options.profile_prefix
    return result


def _load_error(error: Exception) -> ModelError:
    message = str(error)
    for pattern in _MISSING_OPERATOR:
        operators = sorted(set(pattern.findall(message)))
        if operators:
            return UnsupportedOpError(
                f"ONNX Runtime does not implement {', '.join(operators)} with the types and opset of this model:"
                " convert the model, or replace the operator"
            )
    return ModelError(f"ONNX Runtime cannot load the model ({_sentence(error)}): check it, or export it again")


def _sentence(error: Exception) -> str:
    """Returns the runtime's message without codes, source positions and line breaks."""
    message = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    message = re.sub(r"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ ", "", message)
    message = re.sub(r"\b[\w:<>*&, ]+ [\w:~<>]+\([^()]*\)(?: const)? ", "", message, count=1)
    message = " ".join(" ".join(message.splitlines()[:2]).split())
    if len(message) > 300:
        message = message[:297].rstrip() + "..."
    return message.rstrip(". ") or type(error).__name__


def _input_spec(argument: Any) -> InputSpec:
    dtype = _DTYPES.get(argument.type)
    if dtype is None:
        raise ModelError(
            f"input {argument.name!r} has the type {argument.type}, which is not supported:"
            " give the model inputs that are tensors of numbers"
        )
    return InputSpec(argument.name, dtype, tuple(argument.shape))


def _declared_spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    dtype = _ELEMENT_TYPES.get(tensor.elem_type)
    if dtype is None:
        kind = (value.type.WhichOneof("value") or "unknown").removesuffix("_type")
        if kind == "tensor":
            known = tensor.elem_type in onnx.TensorProto.DataType.values()
            kind = f"tensor({onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if known else tensor.elem_type})"
        raise ModelError(
            f"input {value.name!r} has the type {kind}, which is not supported:"
            " give the model inputs that are tensors of numbers"
        )
    dims = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)
    return InputSpec(value.name, dtype, tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in dims))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
