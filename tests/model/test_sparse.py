"""Sparse storage: the same bits in fewer bytes, read by ONNX Runtime, and never a larger file by itself."""

import gzip

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import ModelError, UsageError
from onnxprune.model.io import load, model_bytes, read, read_values, save, to_proto
from onnxprune.model.sparse import CHOICES, compressed_size, storage_for, stored

TYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, ml_dtypes.bfloat16]
SHAPES = [(1100,), (40, 30), (12, 10, 9), (16, 8, 3, 3), (4, 4, 4, 4, 4)]


def weights(shape, dtype=np.float32, sparsity=0.8, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 100, shape).astype(dtype)
    count = values.size
    values.reshape(-1)[rng.permutation(count)[: round(sparsity * count)]] = 0
    return values


def constant_model(*arrays, ir_version=8):
    """A model that returns its weights as they are."""
    names = [f"w{index}" for index in range(len(arrays))]
    types = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"y_{name}"]) for name in names],
        "weights",
        [],
        [
            helper.make_tensor_value_info(f"y_{name}", kind, array.shape)
            for name, kind, array in zip(names, types, arrays, strict=True)
        ],
        [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)],
    )
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 17)])


def run(model, feeds=None):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds or {})


def tensors(model):
    return {tensor.name: tensor for tensor in to_proto(load(model)).graph.initializer}


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_type_and_rank_comes_back_bit_for_bit(shape, dtype, tmp_path):
    values = weights(shape, dtype)
    model = constant_model(values)
    path = tmp_path / "sparse.onnx"
    save(model, path, store_sparse="always")
    file = onnx.load(path)
    assert [item.values.name for item in file.graph.sparse_initializer] == ["w0"]
    assert not file.graph.initializer
    onnx.checker.check_model(file)
    assert read(path)[1] == model
    if dtype is not ml_dtypes.bfloat16:  # for which ONNX Runtime has no array in Python
        found = run(path)[0]
        assert found.dtype == values.dtype
        assert found.tobytes() == values.tobytes()


def test_signs_of_zero_and_payloads_of_nan_survive(tmp_path):
    values = np.zeros((32, 32), np.float32)
    odd = np.array([0x80000000, 0x7FC12345, 0x7F812345, 0xFFC00001, 1, 0x7F800000], np.uint32)
    values[3, :6] = odd.view(np.float32)
    path = tmp_path / "odd.onnx"
    save(constant_model(values), path, store_sparse="auto")
    assert onnx.load(path).graph.sparse_initializer[0].values.dims == [6]
    assert read_values(load(path).nodes[0].inputs[0]).tobytes() == values.tobytes()
    assert run(path)[0].tobytes() == values.tobytes()


def test_nans_that_are_stored_as_numbers_stay_as_they_are():
    model = constant_model(np.zeros(512, np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([0.0] * 511 + [float("nan")])
    assert stored(model, "always") is model
    tensor.float_data[511] = -0.0
    sparse = stored(model, "auto").graph.sparse_initializer[0]
    assert np.signbit(numpy_helper.to_array(sparse.values)).tolist() == [True]


def test_a_network_gives_the_same_outputs_from_a_smaller_file(tmp_path):
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 8, 12, 12] x, bool c) => (float[N, 10] y)
        {
            h = Conv <pads = [1, 1, 1, 1]> (x, conv, bias)
            p = GlobalAveragePool(h)
            shape = Constant <value_ints = [0, 32]> ()
            f = Reshape(p, shape)
            d = DequantizeLinear <axis = 1> (quantized, scale, zero)
            m = MatMul(f, d)
            y = If (c) <
                then_branch = yes () => (float[N, 10] a) { a = MatMul(m, inner) },
                else_branch = no () => (float[N, 10] b) { b = Gemm <transB = 1> (m, inner) }
            >
        }
    """)
    arrays = {
        "conv": weights((32, 8, 3, 3)) / 100,
        "bias": weights(32) / 100,
        "quantized": weights((32, 64), np.int8, 0.95),
        "scale": np.full(64, 0.01, np.float32),
        "zero": np.zeros(64, np.int8),
        "inner": weights((64, 10)) / 100,
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    del model.graph.node[-1].attribute[1]
    other = model.graph.node[-1].attribute.add()
    other.CopyFrom(model.graph.node[-1].attribute[0])
    other.name = "else_branch"
    dense, sparse = tmp_path / "dense.onnx", tmp_path / "sparse.onnx"
    save(model, dense, store_sparse="never")
    save(model, sparse, store_sparse="auto")
    assert {item.values.name for item in onnx.load(sparse).graph.sparse_initializer} == {"conv", "quantized", "inner"}
    assert sparse.stat().st_size < 0.5 * dense.stat().st_size
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 8, 12, 12), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(run(sparse, feeds)[0], run(dense, feeds)[0])
    assert tensors(sparse) == tensors(dense)


@pytest.mark.parametrize(("dtype", "largest"), [(np.float32, 0.45), (np.float16, 0.55), (np.int8, 0.7)])
def test_gains_at_eighty_per_cent(dtype, largest):
    model = constant_model(weights((128, 64), dtype))
    assert model_bytes(stored(model, "auto")) < largest * model_bytes(model)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(TYPES), st.floats(0, 1), st.sampled_from([*SHAPES, (5,), (3, 300, 40)])),
        min_size=1,
        max_size=3,
    )
)
def test_auto_is_never_larger_and_no_tensor_could_be_smaller(drawn):
    arrays = [weights(shape, dtype, sparsity, seed) for seed, (dtype, sparsity, shape) in enumerate(drawn)]
    model = constant_model(*arrays)
    chosen, everything = stored(model, "auto"), stored(model, "always")
    assert len(chosen.SerializeToString()) <= len(model.SerializeToString())
    dense = {tensor.name: tensor.ByteSize() for tensor in model.graph.initializer}
    sparse = {item.values.name: item.ByteSize() for item in everything.graph.sparse_initializer}
    assert {item.values.name for item in chosen.graph.sparse_initializer} == {
        name for name, size in sparse.items() if size < dense[name]
    }
    for result in (chosen, everything):
        assert tensors(result) == tensors(model)


def test_always_stores_what_gets_larger_and_never_stores_nothing(tmp_path):
    model = constant_model(weights((40, 40), sparsity=0), np.ones(8, np.float32), np.ones(600, np.int64))
    assert stored(model, "auto") is model
    large = stored(model, "always")
    assert [item.values.name for item in large.graph.sparse_initializer] == ["w0"]
    assert [tensor.name for tensor in large.graph.initializer] == ["w1", "w2"]
    assert model_bytes(large) > model_bytes(model)
    dense = stored(large, "never")
    assert not dense.graph.sparse_initializer
    assert tensors(dense) == tensors(model)
    path = tmp_path / "model.onnx"
    save(large, path, store_sparse="never")
    assert not onnx.load(path).graph.sparse_initializer


def test_by_default_a_graph_keeps_the_form_it_was_read_in(tmp_path):
    model = constant_model(weights((40, 40)))
    first, second, third = (tmp_path / f"{name}.onnx" for name in ("first", "second", "third"))
    save(model, first, store_sparse="auto")
    save(load(first).copy(), second)
    assert second.read_bytes() == first.read_bytes()
    save(load(model), third)
    assert not onnx.load(third).graph.sparse_initializer
    save(onnx.load(first), third, overwrite=True)
    assert third.read_bytes() == first.read_bytes()
    assert not to_proto(load(first)).graph.sparse_initializer


def test_outputs_and_defaults_of_inputs_stay_dense():
    model = constant_model(*(weights((40, 40), seed=seed) for seed in range(3)))
    model.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [40, 40]))
    model.graph.output.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [40, 40]))
    assert [item.values.name for item in stored(model, "always").graph.sparse_initializer] == ["w2"]


def test_an_old_model_stays_dense():
    model = constant_model(weights((40, 40)), ir_version=5)
    assert stored(model, "auto") is model
    with pytest.raises(UsageError, match="has IR version 5, and sparse initializers came with 6"):
        stored(model, "always")


def test_weights_in_a_file_of_their_own(tmp_path):
    model = constant_model(weights((64, 64)), weights((64, 64), sparsity=0))
    path, dense = tmp_path / "model.onnx", tmp_path / "dense.onnx"
    save(model, path, external=True, store_sparse="auto")
    save(model, dense, external=True)
    total = [sum(file.stat().st_size for file in tmp_path.glob(f"{name}.*")) for name in ("model", "dense")]
    assert total[0] < total[1]
    file = onnx.load(path, load_external_data=False)
    assert file.graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert file.graph.sparse_initializer[0].values.data_location == TensorProto.DEFAULT
    assert tensors(path) == tensors(model)
    for found, tensor in zip(run(path), model.graph.initializer, strict=True):
        assert found.tobytes() == tensor.raw_data


def test_auto_takes_no_more_than_the_model_file_holds(monkeypatch, tmp_path):
    model = constant_model(*(weights((40, 40), seed=seed) for seed in range(3)))
    monkeypatch.setattr("onnxprune.model.external.INLINE_LIMIT", 9000)  # 320 entries take 12 bytes each
    assert len(stored(model, "auto").graph.sparse_initializer) == 2
    path = tmp_path / "model.onnx"
    save(model, path, store_sparse="always")
    file = onnx.load(path, load_external_data=False)
    assert file.graph.sparse_initializer[0].values.data_location == TensorProto.EXTERNAL
    assert tensors(path) == tensors(model)
    assert run(path)[2].tobytes() == model.graph.initializer[2].raw_data


def with_sparse(values, indices, dims):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {y=MatMul(x,w)}'
    )
    sparse = model.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices)))
    return model


@pytest.mark.parametrize("indices", [[1, 3], [[0, 1], [1, 1]]], ids=["linear", "coordinates"])
def test_both_layouts_are_read_as_the_runtime_reads_them(indices):
    model = with_sparse([5, 7], indices, [2, 2])
    before = model.SerializeToString()
    weight = load(model).nodes[0].inputs[1]
    np.testing.assert_array_equal(read_values(weight), np.array([[0, 5], [0, 7]], np.float32))
    found = run(model, {"x": np.array([1, 10], np.float32)})[0]
    np.testing.assert_array_equal(found, [0, 75])
    assert model.SerializeToString() == before


def test_bodies_are_read_too():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y)
        {
            y = If (c) <
                then_branch = yes () => (float[2] a) { a = Add(x, w) },
                else_branch = no () => (float[2] b) { b = Neg(x) }
            >
        }
    """)
    body = model.graph.node[0].attribute[0].g
    body.sparse_initializer.add().CopyFrom(with_sparse([3], [1], [2]).graph.sparse_initializer[0])
    graph = load(model)
    assert read_values(graph.nodes[0].attrs["then_branch"].nodes[0].inputs[1]).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("values", "indices", "dims"),
    [
        ([5, 7], [1, 4], [2, 2]),
        ([5, 7], [-1, 1], [2, 2]),
        ([5, 7], [1], [2, 2]),
        ([5], [1, 2], [2, 2]),
        ([5, 7], [[0, 1, 0], [1, 1, 0]], [2, 2]),
        ([5, 7], [[0, 1], [1, 2]], [2, 2]),
        ([5, 7], [[[0]], [[1]]], [2, 2]),
        ([5], 1, [2, 2]),
        ([5, 7], [1.0, 3.0], [2, 2]),
        ([5, 7], [1, 3], [-2, -2]),
    ],
)
def test_indices_that_do_not_fit_are_refused(values, indices, dims):
    with pytest.raises(ModelError, match="indices of sparse tensor 'w' do not fit its dimensions: export it dense"):
        load(with_sparse(values, indices, dims))


def test_what_cannot_be_dense_is_refused():
    with pytest.raises(ModelError, match="sparse tensor 'w' takes more than 2 GiB"):
        load(with_sparse([5], [1], [2**20, 2**20]))
    model = with_sparse([5], [1], [4])
    model.graph.sparse_initializer[0].values.CopyFrom(numpy_helper.from_array(np.array(["text"], object), "w"))
    with pytest.raises(ModelError, match="holds strings or an unknown type"):
        load(model)


def test_targets():
    assert [storage_for("auto", target) for target in ("ort-cpu", "ort-cuda", "tensorrt", "generic")] == [
        "auto", "auto", "never", "never",
    ]  # fmt: skip
    assert storage_for("always", "ort-cpu") == "always"
    with pytest.raises(UsageError, match="always makes a file that only ort-cpu and ort-cuda read"):
        storage_for("always", "tensorrt")
    for function in (storage_for, lambda choice, _: stored(constant_model(np.ones(2)), choice)):
        with pytest.raises(UsageError, match="'sometimes' is unknown: choose one of auto, never, always"):
            function("sometimes", "ort-cpu")
    assert CHOICES == ("auto", "never", "always")


def test_compressed_size(tmp_path):
    model = constant_model(weights((64, 64)), weights((64, 64), sparsity=0))
    path = tmp_path / "model.onnx"
    save(model, path)
    expected = len(gzip.compress(path.read_bytes(), 6))
    assert compressed_size(path) == expected < path.stat().st_size
    assert compressed_size(str(path)) == compressed_size(onnx.load(path)) == expected
    save(model, path, external=True, overwrite=True)
    files = [path, *tmp_path.glob("*.data")]
    assert compressed_size(path) == sum(len(gzip.compress(file.read_bytes(), 6)) for file in files)
    with pytest.raises(ModelError, match=r"none.onnx' cannot be read"):
        compressed_size(tmp_path / "none.onnx")
