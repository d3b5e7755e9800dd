"""A model that is loaded and saved loses nothing, edits arrive, and bad files are refused with words."""

import errno
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import ModelError, OutputError, UsageError
from onnxprune.model.importer import densified
from onnxprune.model.io import Graph, digest, load, read_values, save, to_proto, write_values

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))

SMALL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N, 3] x) => (float[N, 2] y)
<float[3, 4] w1 = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4, 2] w2 = {1, 2, 3, 4, 5, 6, 7, 8}, float[N, 4] h>
{
    [first] h = MatMul(x, w1)
    [second] r = LeakyRelu <alpha = 0.25> (h)
    [third] y = MatMul(r, w2)
}
"""

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
branches (bool c, float[N, 4] x) => (float[N, 4] y)
<float[4] shared = {1, 2, 3, 4}, float[4] w = {4, 3, 2, 1}>
{
    s = Mul(x, w)
    y = If (c) <
        then_branch = yes () => (float[N, 4] a) <float[4] own = {1, 1, 2, 2}> { t = Add(s, shared) a = Add(t, own) },
        else_branch = no () => (float[N, 4] b) <float[4] own = {3, 3, 2, 2}> { b = Sub(s, own) }
    >
}
"""


def small() -> onnx.ModelProto:
    return parser.parse_model(SMALL)


def round_trip(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    expected = densified(model).SerializeToString(deterministic=True)
    graph = load(model)
    for candidate in (graph, graph.copy()):
        assert to_proto(candidate).SerializeToString(deterministic=True) == expected
    assert model.SerializeToString(deterministic=True) == before


def fill(message, depth: int = 3) -> None:
    """Give every field that is not set a value, messages down to a depth."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        repeated = hasattr(value, "extend")
        is_set = len(value) > 0 if repeated else message.HasField(field.name)
        if is_set or (field.containing_oneof and message.WhichOneof(field.containing_oneof.name)):
            continue
        if field.message_type is not None:
            if depth > 0:
                fill(value.add() if repeated else value, depth - 1)
                if not repeated:
                    value.SetInParent()
            continue
        sample = {field.TYPE_STRING: "text", field.TYPE_BYTES: b"raw\xff", field.TYPE_ENUM: 0}.get(field.type, 1)
        if repeated:
            value.append(sample)
        else:
            setattr(message, field.name, sample)


def filled(message, depth: int = 3):
    fill(message, depth)
    return message


def fields_set(message, found: set[str]) -> set[str]:
    for field, value in message.ListFields():
        found.add(f"{message.DESCRIPTOR.name}.{field.name}")
        if field.message_type is not None:
            for item in value if hasattr(value, "extend") else [value]:
                fields_set(item, found)
    return found


def all_fields(descriptor, found: set[str]) -> set[str]:
    for field in descriptor.fields:
        name = f"{descriptor.name}.{field.name}"
        if name not in found:
            found.add(name)
            if field.message_type is not None:
                all_fields(field.message_type, found)
    return found


def every_attribute() -> list[onnx.AttributeProto]:
    """One attribute of every type, and three odd ones."""
    make = onnx.AttributeProto
    body = parser.parse_graph("inner (float[2] i) => (float[2] o) { o = Add(i, w1) }")
    attributes = [
        make(type=make.UNDEFINED),
        make(type=make.STRING, s=b"\xff\xfe not UTF-8"),
        make(type=make.STRINGS, strings=[b"text", b"\xff"]),
        make(type=make.FLOAT, f=0.1),
        make(type=make.INT, i=-1),
        make(type=make.FLOATS, floats=[0.1, float("nan")]),
        make(type=make.INTS, ints=[3, -4]),
        make(type=make.TENSOR, t=numpy_helper.from_array(np.arange(3.0), "t")),
        make(type=make.TENSORS, tensors=[filled(TensorProto())]),
        make(type=make.GRAPH, g=body),
        make(type=make.GRAPHS, graphs=[filled(onnx.GraphProto(), 0)]),
        make(type=make.TYPE_PROTO, tp=filled(onnx.TypeProto())),
        make(type=make.TYPE_PROTOS, type_protos=[filled(onnx.TypeProto())]),
        make(type=make.SPARSE_TENSOR, sparse_tensor=filled(onnx.SparseTensorProto())),
        make(type=make.SPARSE_TENSORS, sparse_tensors=[filled(onnx.SparseTensorProto())]),
    ]
    assert len(attributes) == len(make.AttributeType.items())
    for attribute in attributes:
        attribute.name = make.AttributeType.Name(attribute.type).lower()
        attribute.doc_string = f"doc of {attribute.name}"
    attributes.append(make(name="reference", type=make.INT, ref_attr_name="outer"))
    attributes.append(make(name="nothing", type=make.INTS))
    return attributes


def every_type() -> list[onnx.ValueInfoProto]:
    """Descriptions of values of every kind of type, with denotations."""
    infos = []
    for kind in onnx.TypeProto.DESCRIPTOR.oneofs_by_name["value"].fields:
        info = onnx.ValueInfoProto(name=f"unused {kind.name}")
        filled(getattr(info.type, kind.name), 4).SetInParent()
        infos.append(filled(info, 5))
    described = onnx.ValueInfoProto(name="extra")
    described.type.tensor_type.elem_type = TensorProto.BFLOAT16
    described.type.tensor_type.shape.dim.add(dim_value=4, denotation="DATA_CHANNEL")
    described.type.tensor_type.shape.dim.add(dim_param="M")
    return [*infos, filled(described)]


def everything() -> onnx.ModelProto:
    """A model in which every field of the ONNX schema is set somewhere."""
    model = small()
    graph = model.graph
    node = helper.make_node("Everything", ["x", "", "w1"], ["", "extra"], name="all", domain="own", overload="o")
    node.attribute.extend(every_attribute())
    sharding = node.device_configurations.add().sharding_spec.add()
    dimension = sharding.sharded_dim.add()
    dimension.simple_sharding.add(dim_value=1, num_shards=2)
    dimension.simple_sharding.add(dim_param="P")
    for message in (dimension, sharding, node.device_configurations[0], node):
        fill(message)
    graph.node.insert(0, node)
    graph.value_info.extend(every_type())
    for info in (*graph.input, *graph.output, *graph.value_info):
        fill(info)
    graph.initializer.append(filled(TensorProto(name="kept though unused")))
    for tensor in graph.initializer[:2]:
        tensor.doc_string = "a weight"
        tensor.metadata_props.add(key="k", value="v")
    graph.sparse_initializer.append(sparse_tensor("unused sparse"))
    fill(graph)
    return filled(model, 5)


def sparse_tensor(name: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 3])), [4])


def test_every_field_of_the_schema_survives():
    model = everything()
    found = fields_set(model, set())
    assert all_fields(onnx.ModelProto.DESCRIPTOR, set()) - found == set()
    round_trip(model)


def test_strings_that_are_not_text_stay_bytes():
    node = load(everything()).nodes[0]
    assert node.attrs["string"] == b"\xff\xfe not UTF-8"
    assert node.attrs["strings"] == ["text", b"\xff"]
    assert "type_proto" not in node.attrs


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_published_networks_survive(path):
    round_trip(onnx.load(path))


def test_bodies_survive_and_outer_constants_stay_outside():
    model = parser.parse_model(BRANCHES)
    round_trip(model)
    graph = load(model)
    body = graph.nodes[1].attrs["then_branch"]
    assert isinstance(body, Graph)
    assert body.nodes[0].inputs[1] is not body.nodes[1].inputs[1]
    write_values(body.nodes[1].inputs[1], np.full(4, 9, np.float32))
    expected = parser.parse_model(BRANCHES)
    then_branch = expected.graph.node[1].attribute[0].g
    then_branch.initializer[0].CopyFrom(numpy_helper.from_array(np.full(4, 9, np.float32), "own"))
    assert to_proto(graph) == expected
    assert load(model).copy().nodes[1].attrs["then_branch"].nodes[0].inputs[1].name == "shared"


def test_a_copied_body_is_apart_from_the_original():
    graph = load(parser.parse_model(BRANCHES))
    copied = graph.copy()
    write_values(copied.nodes[1].attrs["else_branch"].nodes[0].inputs[1], np.zeros(4, np.float32))
    copied.nodes[0].inputs[1].name = "renamed"
    assert to_proto(graph) == parser.parse_model(BRANCHES)
    assert copied.origin is graph.origin


def test_old_files_list_initializers_as_inputs():
    model = small()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.insert(0, info)
    round_trip(model)
    graph = load(model)
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    first, _, third = graph.nodes
    write_values(first.inputs[1], read_values(first.inputs[1])[:, :2])
    write_values(third.inputs[1], read_values(third.inputs[1])[:2])
    first.outputs[0].shape = ["N", 2]
    result = to_proto(graph)
    dims = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in result.graph.input}
    assert dims == {"w2": [2, 2], "w1": [3, 2], "x": [0, 3]}
    assert result.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value == 2
    onnx.checker.check_model(result, full_check=True)


def test_defaults_of_inputs_stay_inputs():
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [4, 2]))
    round_trip(model)
    assert [tensor.name for tensor in load(model).inputs] == ["x"]


def test_local_functions_stay():
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17, "own" : 1]>
        g (float[N] x) => (float[N] y) { y = own.twice <factor = 2.0> (x) }
        <domain: "own", opset_import: ["" : 17]>
        twice <factor> (a) => (b) { f = Constant <value_float : float = @factor> () b = Mul(a, f) }
    """)
    round_trip(model)


@pytest.mark.parametrize("name", ["int4", "uint4", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_types_that_numpy_lacks(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    values = np.array([[0, 1, 2], [3, 4, 6]]).astype(dtype)
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N] x) => (float[N] y) {y = Id(x, w)}'
    )
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    round_trip(model)
    graph = load(model)
    weight = graph.nodes[0].inputs[1]
    assert weight.dtype == dtype
    assert weight.shape == [2, 3]
    assert read_values(weight).dtype == dtype
    np.testing.assert_array_equal(read_values(weight).astype(float), values.astype(float))
    assert not isinstance(weight._values, np.ndarray)
    write_values(weight, values[:, :1])
    written = to_proto(graph).graph.initializer[0]
    assert (written.data_type, list(written.dims)) == (model.graph.initializer[0].data_type, [2, 1])
    np.testing.assert_array_equal(numpy_helper.to_array(written).astype(float), values[:, :1].astype(float))


@pytest.mark.parametrize("indices", [[1, 3], [[0, 1], [1, 1]]], ids=["linear", "coordinates"])
def test_sparse_initializers(indices):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {y=MatMul(x,w)}'
    )
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices)), [2, 2])
    )
    round_trip(model)
    graph = load(model)
    weight = graph.nodes[0].inputs[1]
    dense = read_values(weight)
    np.testing.assert_array_equal(dense, np.array([[0, 5], [0, 7]], np.float32))
    assert dense.dtype == np.float32
    write_values(weight, dense[:, :1])
    result = to_proto(graph).graph
    assert len(result.sparse_initializer) == 0
    np.testing.assert_array_equal(numpy_helper.to_array(result.initializer[0]), dense[:, :1])


def test_edits_arrive_and_the_rest_stays():
    model = everything()
    graph = load(model)
    _, first, second, third = graph.nodes
    write_values(third.inputs[1], np.zeros((4, 2), np.float32))
    second.attrs["alpha"] = 1
    second.attrs["added"] = [1, 2]
    first.outputs[0].shape = ["N", 4]
    expected = densified(everything())
    changed = expected.graph.initializer[1]
    changed.ClearField("float_data")
    changed.raw_data = bytes(32)
    expected.graph.node[2].attribute[0].f = 1.0
    expected.graph.node[2].attribute.append(helper.make_attribute("added", [1, 2]))
    assert to_proto(graph) == expected


def test_a_removed_node_takes_its_weight_with_it_and_nothing_else():
    model = everything()
    graph = load(model)
    _, first, second, third = graph.nodes
    first.inputs[1].name = "w1"
    third.inputs[0] = second.inputs[0]
    second.outputs.clear()
    second.inputs.clear()
    graph.nodes.remove(second)
    expected = densified(everything())
    del expected.graph.node[2]
    expected.graph.node[2].input[0] = "h"
    assert to_proto(graph) == expected
    third.inputs[1] = gs.Constant("new", np.ones((4, 2), np.float32))
    expected.graph.node[2].input[1] = "new"
    del expected.graph.initializer[1]
    expected.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2), np.float32), "new"))
    assert to_proto(graph) == expected


def test_values_that_were_only_looked_at_keep_their_form():
    model = small()
    graph = load(model)
    assert graph.nodes[0].inputs[1].values.sum() == 78
    assert to_proto(graph) == model


def test_shapes_that_are_no_longer_known_are_left_out():
    graph = load(small())
    graph.nodes[0].outputs[0].shape = None
    assert len(to_proto(graph).graph.value_info) == 0


def test_new_nodes_bring_their_domain_and_opset():
    graph = load(small())
    output = gs.Variable("extra", np.dtype(np.float32), ["N", 2])
    graph.nodes.append(gs.Node("Gelu", "", {"axes": []}, [graph.nodes[2].outputs[0]], [output], "com.microsoft"))
    graph.outputs.append(output)
    graph.opset = 18
    result = to_proto(graph)
    assert {item.domain: item.version for item in result.opset_import} == {"": 18, "com.microsoft": 1}
    assert result.graph.output[1] == helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["N", 2])
    assert result.graph.node[3].attribute[0].type == onnx.AttributeProto.INTS


def test_graphs_made_by_hand():
    x = gs.Variable("x", np.float32, ["N", 3])
    y = gs.Variable("y", np.float32, ["N", 2])
    weight = gs.Constant("w", np.ones((3, 2), np.float32))
    plain = gs.Graph([gs.Node("MatMul", "m", {}, [x, weight], [y])], [x], [y], opset=17)
    graph = load(plain)
    assert graph.origin is None
    assert graph.nodes[0] is not plain.nodes[0]
    result = to_proto(graph)
    onnx.checker.check_model(result, full_check=True)
    assert result.opset_import[0].version == 17
    assert result == to_proto(plain)


def test_nodes_out_of_order_are_sorted():
    model = small()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[2], nodes[0], nodes[1]])
    assert [node.name for node in load(model).nodes] == ["first", "second", "third"]


def edited(change) -> onnx.ModelProto:
    model = small()
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.ClearField("graph"), "holds no graph"),
        (lambda model: (model.graph.Clear(), model.graph.SetInParent()), "empty graph"),
        (lambda model: model.graph.node[0].input.append("ghost"), "node 'first' reads 'ghost', which nothing produces"),
        (lambda model: model.graph.node[2].output.append("h"), "'h' is defined twice"),
        (lambda model: model.graph.initializer.append(model.graph.initializer[0]), "'w1' is defined twice"),
        (lambda model: model.graph.node[0].input.append("r"), "cycle through node 'first'"),
        (lambda model: setattr(model, "ir_version", 99), "IR version 99"),
        (lambda model: setattr(model.graph.output[0], "name", "z"), "output 'z' is produced by no node"),
    ],
)
def test_broken_models_are_refused(change, words):
    with pytest.raises(ModelError, match=words):
        load(edited(change))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"no model at all, only text", "not an ONNX model"),
        (np.random.default_rng(0).bytes(500), "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (parser.parse_model(SMALL).SerializeToString()[:-20], "damaged or cut off"),
    ],
    ids=["empty", "text", "random", "pointer", "cut"],
)
def test_bad_files_are_refused(tmp_path, content, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        load(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        digest(tmp_path / "none.onnx")


def test_saving_is_exact_and_repeatable(tmp_path):
    model = small()
    save(load(model), tmp_path / "a.onnx")
    save(model, tmp_path / "b.onnx")
    assert onnx.load(tmp_path / "a.onnx") == model
    assert digest(tmp_path / "a.onnx") == digest(tmp_path / "b.onnx")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_existing_files_are_replaced_only_on_request(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="--force"):
        save(small(), path)
    assert path.read_bytes() == b"precious"
    save(small(), path, overwrite=True)
    assert onnx.load(path) == small()


def test_unwritable_targets(tmp_path):
    with pytest.raises(OutputError, match="folder does not exist"):
        save(small(), tmp_path / "none" / "a.onnx")
    with pytest.raises(OutputError, match="not a plain file"):
        save(small(), tmp_path, overwrite=True)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch, error, external, call):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"precious")
    model = small()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3, 4000), np.float32), "w1"))
    real, calls = getattr(os, call), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > external:
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        save(model, path, overwrite=True, external=external)
    assert [item.name for item in tmp_path.iterdir()] == ["a.onnx"]
    assert path.read_bytes() == b"precious"


def test_bodies_count_when_nodes_are_sorted_and_checked():
    model = parser.parse_model(BRANCHES)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[1], nodes[0]])
    assert [node.op for node in load(model).nodes] == ["Mul", "If"]
    model.graph.node[0].attribute[0].g.node[0].input[1] = "ghost"
    with pytest.raises(ModelError, match="the If node that produces 'y' reads 'ghost'"):
        load(model)


def test_a_constant_that_only_a_body_read_goes_with_its_reader():
    graph = load(parser.parse_model(BRANCHES))
    add = graph.nodes[1].attrs["then_branch"].nodes[0]
    add.inputs[1] = add.inputs[0]
    assert [tensor.name for tensor in to_proto(graph).graph.initializer] == ["w"]


def test_copies_keep_the_kind_of_a_value():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (seq(float[N]) s) => (float[N] y) {i = Constant <value_int=0> ()'
        " y = SequenceAt(s, i)}"
    )
    graph = load(model).copy()
    assert (graph.inputs[0].type, graph.inputs[0].dtype) == ("sequence_type", np.float32)
    assert to_proto(graph) == model
