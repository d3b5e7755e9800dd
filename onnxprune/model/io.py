"""Loading and saving models: nothing that a file holds is lost, and nothing appears half written."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import stat
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from onnxprune import arguments
from onnxprune.errors import ModelError, OutputError, UsageError
from onnxprune.model import external as weights
from onnxprune.model.exporter import export_model
from onnxprune.model.graph import Graph, copy_graph
from onnxprune.model.importer import all_tensors, import_model
from onnxprune.model.sparse import stored
from onnxprune.model.values import byte_count, is_known_type, read_values, write_values
from onnxprune.model.writing import cannot_write, finish, sync_folder, temporary, write_whole

__all__ = ["Graph", "digest", "load", "model_bytes", "read", "read_values", "save", "to_proto", "write_values"]

LARGEST_FILE = 2**31 - 1  # bytes, what protobuf can read


def load(
    source: str | os.PathLike[str] | onnx.ModelProto | gs.Graph,
    *,
    external_root: str | os.PathLike[str] | None = None,
) -> Graph:
    """Return a model as a graph that can be changed; the argument is not.

    Args:
        source: A file, a model or a graph. The weights of a model are shared with it, not copied.
        external_root: A folder into which links to weights files may lead, beside the folder of the model.

    Raises:
        ModelError: the file cannot be read, or what it holds is not a valid model.
        UsageError: the source is none of these.
    """
    if isinstance(source, gs.Graph):
        return copy_graph(source)
    if isinstance(source, onnx.ModelProto):
        _check_header(source, "the model")
        _check_whole(source)
        _check_values(source)
        return import_model(source)
    if not isinstance(source, str | os.PathLike):
        what = f"the model is of the type {type(source).__name__}"
        raise UsageError(f"{what}: give a path, a ModelProto or a graphsurgeon graph")
    path = Path(source)
    model = _read_model(path)
    _check_header(model, f"'{path}'")
    root = None if external_root is None else Path(external_root)
    _check_values(model)
    is_external = weights.read_external(model, path.parent, root)
    graph = import_model(model)
    graph.external = is_external
    return graph


def to_proto(graph: gs.Graph) -> onnx.ModelProto:
    """Return a new model with all that the graph says; whatever did not change is as it was read.

    Raises:
        ModelError: the graph holds something that ONNX cannot express.
    """
    return export_model(graph)


def read(source: object, *, external_root: str | os.PathLike[str] | None = None) -> tuple[Graph, onnx.ModelProto]:
    """Return a model as a graph and as a message; both share the weights unless the source is a graph.

    Raises:
        ModelError: the file cannot be read, or what it holds is not a valid model.
    """
    graph = load(source, external_root=external_root)
    if graph.origin is None or isinstance(source, gs.Graph):
        return graph, to_proto(graph)
    return graph, graph.origin


def model_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes a model takes, weights included; about that many from 1.9 GB on.

    Protobuf itself can only tell by writing the whole message, which it cannot above 2 GiB.
    """
    weight_bytes = weights.inline_size(model)
    return weight_bytes if weight_bytes >= weights.INLINE_LIMIT else int(model.ByteSize())


def save(
    model: gs.Graph | onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    external: bool | None = None,
    store_sparse: str | None = None,
) -> None:
    """Write a model; it appears whole or not at all.

    Args:
        model: The graph or the model; it is not changed.
        path: The file. Weights that go into a file of their own lie beside it as ``<stem>.<hash>.data``.
        overwrite: Whether a file that is there is replaced.
        external: Whether weights go into a file of their own; by default where they came from one, and from
            1.9 GB on (protobuf ends at 2 GiB) in any case.
        store_sparse: ``auto`` stores a weight in sparse form where that is smaller, ``never`` none, ``always`` all
            that can be; by default ``auto`` where a graph was read with such weights, and a model as it is.

    Raises:
        ModelError: the graph holds something that ONNX cannot express.
        UsageError: there is such a file, and ``overwrite`` is not given; or ``store_sparse`` is unknown or impossible.
        OutputError: the file cannot be written.
    """
    if not isinstance(model, gs.Graph | onnx.ModelProto):
        raise UsageError(f"the model is of the type {type(model).__name__}: give a ModelProto or a graph")
    path = Path(arguments.path(path, "the path of the model"))
    _check_target(path, overwrite)
    outside = isinstance(model, Graph) and model.external if external is None else external
    message = model if isinstance(model, onnx.ModelProto) else to_proto(model)
    _check_whole(message)
    if store_sparse is None and isinstance(model, Graph) and model.sparse:
        store_sparse = "auto"
    if store_sparse is not None:
        message = stored(message, store_sparse)
    outside = outside or weights.inline_size(message) >= weights.INLINE_LIMIT
    try:
        replaced = weights.old_weights(path) if path.exists() else []
        written = _write_outside(message, path) if outside else ""
        if not outside:
            write_whole(path, _serialized(message))
    except OSError as error:
        raise cannot_write(path, error) from error
    for item in replaced:
        if item.name != written:
            with contextlib.suppress(OSError):
                item.unlink()


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read ({error.strerror}): check the path") from error


def _read_model(path: Path) -> onnx.ModelProto:
    data = _read_file(path)
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"'{path}' is a Git LFS pointer and not the model: fetch it with 'git lfs pull'")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        # A serialised model starts with the field ir_version: the tag 8 and a small number.
        if data[0] == 8 and len(data) > 1 and 0 < data[1] < 64:
            raise ModelError(f"'{path}' is damaged or cut off: copy or export the model again") from error
        raise ModelError(f"'{path}' is not an ONNX model: give a file that an ONNX exporter wrote") from error
    return model


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        _check_readable(path, status)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"'{path}' does not exist: check the path") from error
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read ({error.strerror}): check the path and its permissions") from error
    if not data:
        raise ModelError(f"'{path}' is empty: copy or export the model again")
    return data


def _check_readable(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ModelError(f"'{path}' is a folder: give the path of an .onnx file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"'{path}' is not a plain file: give the path of an .onnx file")
    if status.st_size > LARGEST_FILE:
        message = f"'{path}' is larger than 2 GiB, which protobuf cannot read"
        raise ModelError(f"{message}: export it with the weights in a file of their own")


def _check_header(model: onnx.ModelProto, what: str) -> None:
    if model.ir_version > onnx.IR_VERSION:
        message = f"{what} has ONNX IR version {model.ir_version}, and the onnx package knows {onnx.IR_VERSION} at most"
        raise ModelError(f"{message}: upgrade onnx or export with an older IR version")
    if not model.HasField("graph"):
        raise ModelError(f"{what} holds no graph: give a file that an ONNX exporter wrote")
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{what} holds an empty graph, without nodes and outputs: export the model again")


def _check_whole(model: onnx.ModelProto) -> None:
    if weights.has_external(model):
        message = "the model refers to weights files, and a model in memory has no folder"
        raise ModelError(f"{message}: load it by its path instead")


def _check_values(model: onnx.ModelProto) -> None:
    """Find tensors that do not hold what their dimensions promise; those in other files are measured when read."""
    for tensor in all_tensors([model]):
        if not is_known_type(tensor.data_type):
            message = f"tensor '{tensor.name}' has the element type {tensor.data_type}, which ONNX does not define"
            raise ModelError(f"{message}: export the model again")
        if min(tensor.dims, default=0) < 0 or not _holds_values(tensor):
            dims = "x".join(map(str, tensor.dims))
            message = f"tensor '{tensor.name}' does not hold the values that its dimensions {dims} ask for"
            raise ModelError(f"{message}: copy or export the model again")


def _holds_values(tensor: onnx.TensorProto) -> bool:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return True
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) == byte_count(tensor)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    # One entry of int32_data holds up to four numbers of less than a byte.
    count = 4 * sum(map(len, fields)) + len(tensor.string_data)
    return count >= int(math.prod(tensor.dims))


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"'{path}' cannot be written, its folder does not exist: create the folder first")
    if not os.path.lexists(path):
        return
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OutputError(f"'{path}' is not a plain file: choose another name")
    if not overwrite:
        raise UsageError(f"'{path}' exists: choose another name or give --force to replace it")


def _write_outside(model: onnx.ModelProto, path: Path) -> str:
    """Write the weights, then the model, and return the name of the weights file."""
    with temporary(path) as (data_file, data_name), temporary(path) as (file, name):
        small, entries, content = weights.move_out(model, data_file)
        finish(data_file)
        data_path = path.with_name(weights.weights_name(path.stem, content))
        for entry in entries:
            entry.value = data_path.name
        finish(file, _serialized(small))
        if not entries:
            os.replace(name, path)
            return ""
        was_there = data_path.exists()
        try:
            os.replace(data_name, data_path)
            os.replace(name, path)
        except BaseException:
            if not was_there and name.exists():
                data_path.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)
    return data_path.name


def _serialized(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))
