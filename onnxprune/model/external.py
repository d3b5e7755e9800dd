"""Weights in files beside the model: read with care where they lie, written under a fresh name."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.exporter import copy_fields
from onnxprune.model.importer import HOLDS_TENSORS, all_tensors
from onnxprune.model.values import bits, byte_count

ALIGNMENT = 4096  # a page: the runtime maps weights from the file
SMALLEST_OUTSIDE = 1024  # bytes; smaller tensors stay in the model
INLINE_LIMIT = 1_900_000_000  # bytes; protobuf ends at 2 GiB


def read_external(model: onnx.ModelProto, folder: Path, root: Path | None) -> bool:
    """Bring the values that lie in other files into the model, one tensor at a time.

    Args:
        model: The model, which is changed.
        folder: The folder of the model file.
        root: Another folder into which links may lead, or None.

    Returns:
        Whether there were such values.

    Raises:
        ModelError: a file is missing, lies elsewhere, or is too short.
    """
    found = False
    for tensor in all_tensors([model]):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        found = True
        fields = {entry.key: entry.value for entry in tensor.external_data}
        data = _read_range(tensor, fields, folder, root)
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return found


def has_external(model: onnx.ModelProto) -> bool:
    """Return whether values of the model lie in other files."""
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in all_tensors([model]))


def _read_range(tensor: onnx.TensorProto, fields: dict[str, str], folder: Path, root: Path | None) -> bytes:
    location = fields.get("location", "")
    what = f"tensor '{tensor.name}' has its values in '{location}'"
    offset, length = (_number(fields.get(key), f"{what} with the {key}") for key in ("offset", "length"))
    if not bits(tensor.data_type):
        raise ModelError(f"{what}, but strings and unknown types cannot lie in a file: export the model again")
    expected = byte_count(tensor)
    if expected < 0 or length not in (None, expected):
        raise ModelError(f"{what} with {length} bytes where it needs {expected}: export the model again")
    with _open(location, what, folder, root) as file:
        if os.fstat(file.fileno()).st_size < (offset or 0) + expected:
            raise ModelError(f"{what}, which ends before them: copy the file again, it is not complete")
        file.seek(offset or 0)
        return file.read(expected)


def _number(text: str | None, what: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ModelError(f"{what} {text!r}, which is not a whole number of bytes: export the model again")
    return int(text)


def _open(location: str, what: str, folder: Path, root: Path | None) -> BinaryIO:
    """Open a weights file, if it is a plain file that lies where it may lie.

    Raises:
        ModelError: it does not.
    """
    path = folder / _checked_location(location, what)
    real = Path(os.path.realpath(path))
    base = Path(os.path.realpath(folder))
    real_root = None if root is None else Path(os.path.realpath(root))
    admitted = real_root is not None and real.is_relative_to(real_root)
    if not real.is_relative_to(base) and not admitted:
        message = f"{what}, a link that leads out of the folder of the model"
        raise ModelError(f"{message}: copy the file there or admit its folder with --external-root")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(real, flags), "rb")
    except OSError as error:
        message = f"{what}, which cannot be read ({error.strerror})"
        raise ModelError(f"{message}: put the file beside the model") from error
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and (status.st_nlink <= 1 or admitted):
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{what}, which is not a plain file: put the file beside the model")
    message = f"{what}, a hard link to a file that may lie anywhere"
    raise ModelError(f"{message}: copy the file or admit its folder with --external-root")


def _checked_location(location: str, what: str) -> str:
    if not location or "\0" in location:
        raise ModelError(f"{what}, which names no file: export the model again")
    windows = PureWindowsPath(location)
    absolute = PurePosixPath(location).is_absolute() or bool(windows.drive or windows.root)
    if absolute or ".." in windows.parts:
        message = f"{what}, which is not inside the folder of the model"
        raise ModelError(f"{message}: put the file beside the model and export with a relative location")
    return location


def inline_size(model: onnx.ModelProto) -> int:
    """Return about how many bytes the model takes as one file: its values, without names and structure."""
    return sum(byte_count(tensor) for tensor in all_tensors([model]))


def move_out(model: onnx.ModelProto, file: BinaryIO) -> tuple[onnx.ModelProto, list[onnx.StringStringEntryProto], str]:
    """Write the larger initializers into a file and return a model that refers to it.

    Args:
        model: The model; it is not changed, and its weights are not copied in memory.
        file: Where the values go, each at a multiple of 4096 bytes.

    Returns:
        The model without these values, the entries in which the name of the file is still missing, and a hash of
        what was written.
    """
    hasher = hashlib.sha256()
    entries: list[onnx.StringStringEntryProto] = []
    attributes_too = size_in_attributes(model) >= INLINE_LIMIT
    position = 0

    def write(data: bytes) -> None:
        nonlocal position
        file.write(data)
        hasher.update(data)
        position += len(data)

    def copy(tensor: onnx.TensorProto, target: onnx.TensorProto, is_initializer: bool) -> None:
        outside = is_initializer or attributes_too
        if not outside or bits(tensor.data_type) == 0 or byte_count(tensor) < SMALLEST_OUTSIDE:
            target.CopyFrom(tensor)
            return
        write(b"\0" * (-position % ALIGNMENT))
        data = _raw(tensor)
        _describe(tensor, target, position, len(data))
        entries.append(target.external_data[0])
        write(data)

    result = onnx.ModelProto()
    _copy_message(model, result, copy)
    return result, entries, hasher.hexdigest()[:16]


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which the larger initializers are inputs: the same structure, light enough to be checked."""
    large = {tensor.name: tensor for tensor in model.graph.initializer if byte_count(tensor) >= SMALLEST_OUTSIDE}
    result = onnx.ModelProto()

    def copy(tensor: onnx.TensorProto, target: onnx.TensorProto, is_initializer: bool) -> None:
        if not is_initializer or tensor.name not in large:
            target.CopyFrom(tensor)

    _copy_message(model, result, copy)
    kept = [tensor for tensor in result.graph.initializer if tensor.name]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    declared = {value.name for value in result.graph.input}
    for name, tensor in large.items():
        if name not in declared:
            result.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return result


def size_in_attributes(model: onnx.ModelProto) -> int:
    """Return the bytes of all values but those of dense initializers, which alone go into another file first."""
    initializers = 0

    def count(tensor: onnx.TensorProto, _: onnx.TensorProto, is_initializer: bool) -> None:
        nonlocal initializers
        initializers += byte_count(tensor) if is_initializer else 0

    _copy_message(model, onnx.ModelProto(), count)
    return inline_size(model) - initializers


def _describe(tensor: onnx.TensorProto, target: onnx.TensorProto, offset: int, length: int) -> None:
    """Fill a message with all of a tensor but its values."""
    target.dims.extend(tensor.dims)
    target.data_type = tensor.data_type
    if tensor.HasField("name"):
        target.name = tensor.name
    if tensor.HasField("doc_string"):
        target.doc_string = tensor.doc_string
    target.metadata_props.extend(tensor.metadata_props)
    target.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", ""), ("offset", str(offset)), ("length", str(length))):
        target.external_data.add(key=key, value=value)


def _raw(tensor: onnx.TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


CopyTensor = Callable[[onnx.TensorProto, onnx.TensorProto, bool], None]


def _copy_message(source: Message, target: Any, copy_tensor: CopyTensor) -> None:
    """Copy a message field by field, its tensors through ``copy_tensor(source, target, is_initializer)``."""
    plain = {field.name for field, _ in source.ListFields() if not _holds_tensors(field)}
    for field, value in source.ListFields():
        if field.name in plain:
            continue
        destination = getattr(target, field.name)
        single = isinstance(value, Message)
        for item in [value] if single else value:
            message = destination if single else destination.add()
            message.SetInParent()
            if field.message_type.name == "TensorProto":
                copy_tensor(item, message, field.name == "initializer")
            else:
                _copy_message(item, message, copy_tensor)
    copy_fields(source, target, {field.name for field, _ in source.ListFields()} - plain)


def _holds_tensors(field: Any) -> bool:
    return field.message_type is not None and field.message_type.name in HOLDS_TENSORS


def weights_name(stem: str, content: str) -> str:
    """Return the name of a weights file: from the name of the model and a hash of what is in it."""
    return f"{stem}.{content}.data"


def old_weights(path: Path) -> list[Path]:
    """Return the weights files that the model at ``path`` refers to and that bear a name we gave for it."""
    pattern = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.data")
    beside = [item for item in path.parent.glob("*.data") if pattern.fullmatch(item.name)]
    if not beside:
        return []
    used = {item.name for item in weights_files(path)}
    return [item for item in beside if item.name in used]


def weights_files(path: Path) -> list[Path]:
    """Return the files that the model at ``path`` says its weights are in; none where it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size >= INLINE_LIMIT:
            return []
        model = onnx.ModelProto.FromString(path.read_bytes())
    except (OSError, ValueError, DecodeError):
        return []
    entries = (entry for tensor in all_tensors([model]) for entry in tensor.external_data)
    return [path.parent / name for name in sorted({entry.value for entry in entries if entry.key == "location"})]
