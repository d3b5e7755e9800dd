import numpy as np
import onnx
import pytest
from onnx import parser

from onnxprune.data.random import choose_shapes, find_running_shapes, find_running_sizes, random_feeds, random_samples
from onnxprune.errors import ModelError, UnsupportedOpError, UsageError
from onnxprune.runtime.session import SessionOptions, open_session

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
OPTIONS = SessionOptions(threads=1)


def model_of(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(HEAD + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


RELU = "agraph (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }"


def test_free_dimensions_get_sizes_by_their_place():
    assert choose_shapes(model_of(RELU)) == {"x": (1, 3, 64, 64)}
    assert choose_shapes(model_of(RELU), batch=4) == {"x": (4, 3, 64, 64)}
    assert choose_shapes(model_of(RELU.replace("N, 3, H, W", "?, H, W, 3"))) == {"x": (1, 64, 64, 3)}
    assert choose_shapes(model_of(RELU.replace("N, 3, H, W", "?, ?, ?, ?"))) == {"x": (1, 3, 64, 64)}
    assert choose_shapes(model_of(RELU.replace("N, 3, H, W", "batch, seq, 8"))) == {"x": (1, 16, 8)}
    assert choose_shapes(model_of(RELU.replace("N, 3, H, W", "T, batch, 8"))) == {"x": (16, 1, 8)}
    assert choose_shapes(model_of(RELU.replace("N, 3, H, W", "samples"))) == {"x": (16,)}


def test_one_name_has_one_size():
    text = "agraph (float[N, S, 4] a, float[N, S, 4] b, float[4, S] c) => (float[N, S, 4] y) { y = Add (a, b) }"
    assert choose_shapes(model_of(text)) == {"a": (1, 16, 4), "b": (1, 16, 4), "c": (4, 16)}
    given = choose_shapes(model_of(text), {"a": (2, 7, 4)})
    assert given == {"a": (2, 7, 4), "b": (2, 7, 4), "c": (4, 7)}


def test_sums_of_names_are_added():
    model = model_of("agraph (int64[N, S] a, int64[N, P] b) => (int64[N, S] y) { y = Identity (a) }")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "past"
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "past + 1"
    assert choose_shapes(model) == {"a": (1, 16), "b": (1, 17)}


def test_overrides_are_checked():
    model = model_of(RELU)
    assert choose_shapes(model, {"x": (1, 3, 7, 9)}) == {"x": (1, 3, 7, 9)}
    cases = {
        "but the inputs are 'x'": {"z": (1, 3, 7, 9)},
        "3 axes, but the model has 4": {"x": (1, 3, 7)},
        "the model fixes it to 3": {"x": (1, 4, 7, 7)},
        "sizes start at 1": {"x": (1, 3, 0, 7)},
    }
    for message, overrides in cases.items():
        with pytest.raises(UsageError, match=message):
            choose_shapes(model, overrides)
        with pytest.raises(UsageError, match=message):
            find_running_shapes(model, overrides, OPTIONS)
    with pytest.raises(UsageError, match="'N' the sizes 1 and 2"):
        choose_shapes(
            model_of("agraph (float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Add (a, b) }"),
            {"a": (1, 2), "b": (2, 2)},
        )


def fully_connected(side: int) -> onnx.ModelProto:
    text = """agraph (float[N, 3, H, W] x) => (float[N, 2] y) {
        flat = Flatten (x)
        y = MatMul (flat, w)
    }"""
    return model_of(text, w=np.ones((3 * side * side, 2), np.float32))


def test_sizes_are_tried_until_the_model_runs():
    sizes = find_running_sizes(fully_connected(224), options=OPTIONS)
    assert sizes.shapes == {"x": (1, 3, 224, 224)}
    assert sizes.chosen == {"N": 1, "H": 224, "W": 224}


def test_a_model_that_never_runs_names_the_way_out():
    with pytest.raises(ModelError, match=r"none of the sizes.*MatMul.*--input-shape, such as x:1x3x64x64"):
        find_running_shapes(fully_connected(7), options=OPTIONS)
    assert find_running_shapes(fully_connected(7), {"x": (2, 3, 7, 7)}, OPTIONS) == {"x": (2, 3, 7, 7)}


def test_a_model_of_fixed_shapes_that_does_not_run():
    model = model_of("agraph (float[2, 3] x, int64[1] s) => (float[A, B] y) { y = Reshape (x, t) }", t=np.array([4, 4]))
    with pytest.raises(ModelError, match="of its own shapes"):
        find_running_shapes(model, options=OPTIONS)


def test_operators_that_are_missing_are_said_at_once():
    with pytest.raises(UnsupportedOpError, match="Missing"):
        find_running_shapes(model_of(RELU.replace("Relu", "Missing")), options=OPTIONS)


def test_inputs_that_are_no_tensors_of_numbers():
    sequence = model_of("agraph (seq(float[N]) x) => (seq(float[N]) y) { y = Identity (x) }")
    strings = model_of("agraph (string[N] x) => (string[N] y) { y = Identity (x) }")
    for model in (sequence, strings):
        with pytest.raises(ModelError, match="not supported"):
            choose_shapes(model)
        with pytest.raises(ModelError, match="not supported"):
            random_samples(model, {"x": (1,)}, 1, 0)


def test_an_input_without_shape_needs_one():
    model = model_of(RELU)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="--input-shape x:"):
        choose_shapes(model)
    assert choose_shapes(model, {"x": (1, 2)}) == {"x": (1, 2)}


def test_initializers_are_no_inputs():
    text = "agraph (float[N, 2] x, float[2] b) => (float[N, 2] y) { y = Add (x, b) }"
    assert choose_shapes(model_of(text, b=np.ones(2, np.float32))) == {"x": (1, 2)}


EMBEDDING = """agraph (int64[N, S] ids, int64[N, S] kinds, int64[N, S] attention_mask) => (float[N, S, 2] y) {
    narrow = Cast <to = 6> (ids)
    words = Gather (table, narrow)
    marks = Gather (small, kinds)
    sum = Add (words, marks)
    weight = Cast <to = 1> (attention_mask)
    axes = Constant <value_ints = [2]> ()
    wide = Unsqueeze (weight, axes)
    y = Mul (sum, wide)
}"""


def embedding() -> onnx.ModelProto:
    return model_of(EMBEDDING, table=np.ones((50, 2), np.float32), small=np.ones((2, 2), np.float32))


def test_integers_stay_inside_the_tables():
    samples = random_samples(embedding(), dict.fromkeys(("ids", "kinds", "attention_mask"), (1, 16)), 40, 3)
    ids = samples.arrays["ids"]
    assert ids.dtype == np.int64
    assert ids.min() == 0
    assert ids.max() == 49
    assert set(np.unique(samples.arrays["kinds"])) == {0, 1}
    assert set(np.unique(samples.arrays["attention_mask"])) == {0, 1}
    assert samples.arrays["attention_mask"][:, 0].all()
    assert find_running_shapes(embedding(), options=OPTIONS)["ids"] == (1, 16)


def test_the_smallest_table_bounds():
    text = """agraph (int64[N] i) => (float[N] y) {
        a = Gather (large, i)
        b = Gather <axis = 1> (wide, i)
        c = ReduceSum (b)
        y = Add (a, c)
    }"""
    model = model_of(text, large=np.ones(50, np.float32), wide=np.ones((9, 4), np.float32))
    assert random_samples(model, {"i": (1,)}, 200, 0).arrays["i"].max() == 3
    swapped = model_of(text, large=np.ones(3, np.float32), wide=np.ones((9, 40), np.float32))
    assert random_samples(swapped, {"i": (1,)}, 200, 0).arrays["i"].max() == 2


def test_a_table_of_unknown_height_gets_its_first_row():
    text = "agraph (float[A, 2] x, int64[N] i) => (float[N, 2] y) { r = Relu (x) y = Gather (r, i) }"
    feeds = random_feeds(model_of(text), {"x": (3, 2), "i": (5,)}, 0)
    assert feeds["i"].max() == 0


def test_columns_and_parts_index_tables_too():
    columns = """agraph (int64[N, 3] i) => (float[N] y) {
        two = Constant <value_int = 2> ()
        column = Gather <axis = 1> (i, two)
        y = Gather (table, column)
    }"""
    parts = """agraph (int64[N, 3] i, int64[N, 1] j) => (float[N, 2] y) {
        joined = Concat <axis = 1> (i, j)
        a, b = Split <axis = 1> (joined)
        y = Gather (table, b)
    }"""
    for text, names in ((columns, "i"), (parts, "ij")):
        sizes = {"i": (1, 3), "j": (1, 1)}
        drawn = random_samples(model_of(text, table=np.ones(4, np.float32)), {k: sizes[k] for k in names}, 100, 0)
        assert [drawn.arrays[name].max() for name in names] == [3] * len(names)


def test_one_hot_bounds():
    one_hot = """agraph (int64[N, S] i) => (float[N, S, D] y) {
        depth = Constant <value_ints = [6]> ()
        values = Constant <value_floats = [0.0, 1.0]> ()
        y = OneHot (i, depth, values)
    }"""
    compared = """agraph (int64[N, S] i) => (bool[N, S, D] y) {
        axes = Constant <value_ints = [2]> ()
        wide = Unsqueeze (i, axes)
        start = Constant <value_int = 0> ()
        stop = Constant <value_int = 6> ()
        step = Constant <value_int = 1> ()
        classes = Range (start, stop, step)
        y = Equal (wide, classes)
    }"""
    for text in (one_hot, compared):
        drawn = random_samples(model_of(text), {"i": (1, 10)}, 30, 0).arrays["i"]
        assert (drawn.min(), drawn.max()) == (0, 5)


def test_no_sequence_is_longer_than_the_steps():
    recurrent = """agraph (float[7, B, 2] x, int32[B] n) => (float[T, D, B, H] y) {
        y = RNN <hidden_size = 3> (x, w, r, , n)
    }"""
    batch_first = """agraph (float[B, 6, 2] x, int64[B] n) => (float[B, T, 2] y) {
        k = Cast <to = 6> (n)
        z = RNN <hidden_size = 3, layout = 1> (x, w, r, , k)
        y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, n)
    }"""
    unknown = "agraph (float[T, B, 2] x, int64[B] n) => (float[T, B, 2] y) { y = ReverseSequence (x, n) }"
    weights = {"w": np.ones((1, 3, 2), np.float32), "r": np.ones((1, 3, 3), np.float32)}
    for text, longest in ((recurrent, 7), (batch_first, 6), (unknown, 1)):
        drawn = random_samples(model_of(text, **weights), {"x": (7, 1, 2), "n": (1,)}, 100, 0).arrays["n"]
        assert drawn.max() == longest


def test_a_scalar_takes_the_constant_it_is_compared_to():
    text = """agraph (float[N, 4] x, int64 rate, int64 other) => (bool y) {
        known = Constant <value_int = 16000> ()
        y = Equal (rate, known)
    }"""
    samples = random_samples(model_of(text), {"x": (1, 4), "rate": (), "other": ()}, 3, 0)
    assert samples.constants["rate"] == 16000
    assert samples.constants["other"] == 1
    assert samples.constants["rate"].dtype == np.int64


def test_tables_in_subgraphs_bound_too():
    text = """agraph (bool c, int64[N, 1] i) => (float[N, 1] y) {
        y = If (c) <
            then_branch = yes () => (float[N, 1] a) { a = Gather (table, i) },
            else_branch = no () => (float[N, 1] b) { b = Cast <to = 1> (i) }
        >
    }"""
    samples = random_samples(model_of(text, table=np.ones(3, np.float32)), {"c": (), "i": (1, 1)}, 50, 0)
    assert samples.arrays["i"].max() == 2
    assert isinstance(samples.constants["c"], np.ndarray)
    assert samples.constants["c"].dtype == np.bool_


def test_values_by_type():
    text = """agraph (float[N, 3, 8, 8] image, float16[N, 40] f, uint8[N, 40] u, int8[N, 40] i, int32[N, 40] k,
                      bool[N, 40] b) => (float[N, 3, 8, 8] y) { y = Relu (image) }"""
    model = model_of(text)
    samples = random_samples(model, choose_shapes(model), 20, 0)
    image = samples.arrays["image"]
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.dtype == np.float32
    assert samples.arrays["f"].dtype == np.float16
    assert samples.arrays["f"].std() == pytest.approx(0.5, abs=0.05)
    assert samples.arrays["u"].max() > 200
    assert samples.arrays["i"].min() < -100
    assert set(np.unique(samples.arrays["k"])) == set(range(10))
    assert set(np.unique(samples.arrays["b"])) == {False, True}


def test_the_seed_decides():
    model, shapes = model_of(RELU), {"x": (1, 3, 4, 4)}
    first, again, other = (random_samples(model, shapes, 3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.arrays["x"], again.arrays["x"])
    assert not np.array_equal(first.arrays["x"], other.arrays["x"])
    assert (first.origin, first.random, first.seed, first.count) == ("random", True, 1, 3)


def test_states_stay_constant_and_fix_the_batch():
    text = "agraph (float[N, 8] x, float[2, N, 5] state, float[4] gain) => (float[N, 8] y) { y = Relu (x) }"
    model = model_of(text)
    samples = random_samples(model, choose_shapes(model), 6, 0)
    assert set(samples.arrays) == {"x"}
    assert samples.fixed_batch == 1
    session = open_session(model, OPTIONS)
    outputs = [session.run(feeds)["y"].shape for feeds in samples.batches(32)]
    assert outputs == [(1, 8)] * 6


def test_fixed_batches_are_filled():
    model = model_of("agraph (float[4, 2] x) => (float[4, 2] y) { y = Relu (x) }")
    samples = random_samples(model, choose_shapes(model), 10, 0)
    assert (samples.count, samples.fixed_batch) == (8, 4)
    assert random_samples(model, choose_shapes(model), 1, 0).count == 4


def test_feeds_have_exactly_the_shapes():
    model = model_of(RELU)
    assert random_feeds(model, {"x": (5, 3, 6, 6)}, 0)["x"].shape == (5, 3, 6, 6)


def test_an_input_of_no_known_type_is_refused():
    model = model_of(RELU)
    model.graph.input[0].type.tensor_type.elem_type = 65
    with pytest.raises(ModelError, match="holds no known type"):
        choose_shapes(model)
