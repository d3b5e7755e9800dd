"""Weights in files of their own: read only where they may lie, written so that a model is never half replaced."""

import os
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import ModelError
from onnxprune.model.external import without_weights
from onnxprune.model.io import load, read_values, save, to_proto, write_values

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (bool c, float[N, 512] x) => (float[N, 512] y)
{
    k = Constant ()
    s = Add(x, w)
    t = Mul(s, k)
    y = If (c) <
        then_branch = yes () => (float[N, 512] a) { a = Add(t, inner) },
        else_branch = no () => (float[N, 512] b) { b = Sub(t, small) }
    >
}
"""


def model() -> onnx.ModelProto:
    """An initializer outside and one inside of a body, a small one, and one in the attribute of a node."""
    result = parser.parse_model(TEXT)
    random = np.random.default_rng(7)
    w, inner, k = (numpy_helper.from_array(random.random(512, np.float32), name) for name in ("w", "inner", "k"))
    result.graph.initializer.append(w)
    result.graph.initializer.append(numpy_helper.from_array(np.float32(2), "small"))
    result.graph.node[3].attribute[0].g.initializer.append(inner)
    result.graph.node[0].attribute.append(helper.make_attribute("value", k))
    return result


def write_external(folder, **fields) -> None:
    """Write the model with all larger tensors in one file, then overwrite entries of tensor ``w``."""
    whole = model()
    onnx.save(
        whole,
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=100,
        convert_attribute=True,
    )
    written = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = written.graph.initializer[0]
    entries = {entry.key: entry.value for entry in tensor.external_data} | fields
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(written.SerializeToString())


def test_values_are_read_wherever_they_are_used(tmp_path):
    write_external(tmp_path)
    graph = load(tmp_path / "model.onnx")
    assert graph.external
    assert graph.copy().external
    result, expected = to_proto(graph), model()
    assert result == expected


def test_a_length_may_be_missing(tmp_path):
    write_external(tmp_path)
    path = tmp_path / "model.onnx"
    written = onnx.load(path, load_external_data=False)
    entries = written.graph.initializer[0].external_data
    kept = [(entry.key, entry.value) for entry in entries if entry.key != "length"]
    del entries[:]
    for key, value in kept:
        entries.add(key=key, value=value)
    path.write_bytes(written.SerializeToString())
    assert to_proto(load(path)) == model()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"location": "../weights.bin"}, "not inside the folder"),
        ({"location": "sub/../../weights.bin"}, "not inside the folder"),
        ({"location": "..\\weights.bin"}, "not inside the folder"),
        ({"location": "/etc/hostname"}, "not inside the folder"),
        ({"location": "C:\\weights.bin"}, "not inside the folder"),
        ({"location": ""}, "names no file"),
        ({"location": "none.bin"}, "cannot be read"),
        ({"location": "."}, "cannot be read|not a plain file"),
        ({"offset": "999999"}, "ends before them"),
        ({"offset": "-4"}, "not a whole number"),
        ({"offset": "four"}, "not a whole number"),
        ({"length": "-1"}, "not a whole number"),
        ({"length": "2044"}, "2044 bytes where it needs 2048"),
    ],
)
def test_bad_entries_are_refused(tmp_path, fields, words):
    write_external(tmp_path, **fields)
    with pytest.raises(ModelError, match=words) as caught:
        load(tmp_path / "model.onnx")
    assert "tensor 'w'" in str(caught.value)


def test_impossible_dimensions_are_refused(tmp_path):
    write_external(tmp_path)
    path = tmp_path / "model.onnx"
    for dims in ([-512], [10**15]):
        written = onnx.load(path, load_external_data=False)
        tensor = written.graph.initializer[0]
        tensor.dims[:] = dims
        del tensor.external_data[1:]
        path.write_bytes(written.SerializeToString())
        with pytest.raises(ModelError, match="tensor 'w'"):
            load(path)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_links_out_of_the_folder_are_refused_unless_admitted(tmp_path, link):
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    inside.mkdir()
    elsewhere.mkdir()
    write_external(inside)
    (inside / "weights.bin").rename(elsewhere / "weights.bin")
    link(elsewhere / "weights.bin", inside / "weights.bin")
    with pytest.raises(ModelError, match=r"link .*--external-root"):
        load(inside / "model.onnx")
    with pytest.raises(ModelError, match=r"link .*--external-root"):
        load(inside / "model.onnx", external_root=tmp_path / "other")
    assert to_proto(load(inside / "model.onnx", external_root=tmp_path)) == model()


def test_links_within_the_folder_are_followed(tmp_path):
    write_external(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "real.bin")
    (tmp_path / "weights.bin").symlink_to("real.bin")
    assert to_proto(load(tmp_path / "model.onnx")) == model()


def test_a_model_in_memory_has_no_folder(tmp_path):
    write_external(tmp_path)
    unread = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="no folder"):
        load(unread)
    with pytest.raises(ModelError, match="no folder"):
        save(unread, tmp_path / "other.onnx")


def test_weights_that_came_from_a_file_go_into_one(tmp_path):
    write_external(tmp_path)
    graph = load(tmp_path / "model.onnx")
    out = tmp_path / "out"
    out.mkdir()
    save(graph, out / "a.slim.onnx")
    names = sorted(item.name for item in out.iterdir())
    assert len(names) == 2
    assert re.fullmatch(r"a\.slim\.[0-9a-f]{16}\.data", names[0])
    written = onnx.load(out / "a.slim.onnx", load_external_data=False)
    big, little = written.graph.initializer
    inner = written.graph.node[3].attribute[0].g.initializer[0]
    assert little.data_location == TensorProto.DEFAULT
    assert written.graph.node[0].attribute[0].t.data_location == TensorProto.DEFAULT
    offsets = []
    for tensor in (big, inner):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert (entries["location"], entries["length"]) == (names[0], "2048")
        offsets.append(int(entries["offset"]))
    assert sorted(offsets) == [0, 4096]
    onnx.checker.check_model(out / "a.slim.onnx", full_check=True)
    assert to_proto(load(out / "a.slim.onnx")) == model()


def test_saving_again_gives_the_same_bytes_and_removes_the_old_weights(tmp_path):
    path, foreign = tmp_path / "a.onnx", tmp_path / "a.0123456789abcdef.data"
    foreign.write_bytes(b"not ours to delete")
    save(model(), path, external=True)
    first = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    save(model(), path, external=True, overwrite=True)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == first
    graph = load(path)
    weight = graph.nodes[1].inputs[1]
    write_values(weight, read_values(weight) * 2)
    save(graph, path, overwrite=True)
    second = {item.name for item in tmp_path.iterdir()}
    assert len(second) == 3
    assert second & set(first) == {"a.onnx", foreign.name}
    np.testing.assert_array_equal(
        read_values(load(path).nodes[1].inputs[1]), 2 * numpy_helper.to_array(model().graph.initializer[0])
    )
    save(model(), path, overwrite=True)
    assert {item.name for item in tmp_path.iterdir()} == {"a.onnx", foreign.name}


def test_large_models_go_out_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxprune.model.external.INLINE_LIMIT", 4096)
    save(model(), tmp_path / "a.onnx")
    assert len(list(tmp_path.glob("a.*.data"))) == 1
    assert to_proto(load(tmp_path / "a.onnx")) == model()
    monkeypatch.setattr("onnxprune.model.external.INLINE_LIMIT", 2000)
    save(model(), tmp_path / "b.onnx")
    written = onnx.load(tmp_path / "b.onnx", load_external_data=False)
    assert written.graph.node[0].attribute[0].t.data_location == TensorProto.EXTERNAL
    assert to_proto(load(tmp_path / "b.onnx")) == model()


def test_typed_fields_become_raw(tmp_path):
    typed = model()
    values = np.arange(600, dtype=np.float32)
    typed.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [600], values))
    typed.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [5000], np.arange(5000) % 8))
    save(typed, tmp_path / "a.onnx", external=True)
    written = load(tmp_path / "a.onnx").origin.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(written[0]), values)
    np.testing.assert_array_equal(numpy_helper.to_array(written[2]).astype(int), np.arange(5000) % 8)


def test_a_model_without_its_weights_is_as_valid():
    source = model()
    light = without_weights(source)
    assert light.ByteSize() < source.ByteSize() - 2000
    assert [value.name for value in light.graph.input] == [*(v.name for v in source.graph.input), "w"]
    assert [tensor.name for tensor in light.graph.initializer] == ["small"]
    assert list(light.graph.node) == list(source.graph.node)
    onnx.checker.check_model(light, full_check=True)
    source.graph.initializer[0].dims[0] += 1
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(without_weights(source), full_check=True)
