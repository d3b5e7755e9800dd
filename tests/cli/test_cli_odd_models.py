"""Models that exporters really write, in all their oddity: inspect reads each, slim prunes it or says why not."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

MLP = "agraph (float[N, 4] x) => (float[N, 2] y) { a = MatMul (x, v) b = Relu (a) y = MatMul (b, w) }"
HEAD = "a = MatMul (x, v) b = Relu (a)"
V, W = (4, 16), (16, 2)


def halves(command, path, *options):
    """The hidden channels are halved, whatever stands around them; inspect agrees that they can be."""
    assert command("inspect", path).code == 0
    result = command.slim(path, *options)
    assert (result.code, result.err) == (0, ""), result
    model = onnx.load(path.with_name(f"{path.stem}.slim.onnx"))
    assert model.ir_version == onnx.load(path).ir_version
    return model


def refused(command, path, code, words, *options):
    assert command("inspect", path).code == 0
    command.refuses(code, words, "slim", path, "--channels", "0.5", "--round-to", "1", "--no-latency", *options)


def weights_of(model):
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 17, 18, 20, 22, 23])
def test_operator_sets(command, save, opset):
    model = halves(command, save(MLP, ir_version=3 if opset == 7 else 10, opset=opset, v=V, w=W))
    assert weights_of(model) == {"v": (4, 8), "w": (8, 2)}
    assert model.opset_import[0].version == opset


def test_weights_listed_as_inputs(command, save):
    """Until IR version 4 every initializer had to be an input as well."""
    path = save(MLP, ir_version=3, opset=7, v=V, w=W)
    model = onnx.load(path)
    for name, shape in (("v", V), ("w", W)):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save(model, path)
    model = halves(command, path)
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    assert (sizes["v"], sizes["w"]) == ([4, 8], [8, 2])


@pytest.mark.parametrize(("word", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_element_types(command, save, word, dtype):
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal(shape).astype(dtype) for name, shape in (("v", V), ("w", W))}
    halves(command, save(MLP.replace("float[", f"{word}["), **weights))


def test_weights_in_constant_nodes(command, save):
    path = save(MLP)
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{MLP}')
    for name, shape in (("v", V), ("w", W)):
        tensor = numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
    onnx.save(model, path)
    halves(command, path)


def test_weights_behind_other_nodes(command, save):
    text = f"""agraph (float[N, 4] x) => (float[N, 2] y) {{
        same = Identity (v0) v = Cast <to = 1> (same) {HEAD} turned = Transpose (w) y = Gemm <transB = 1> (b, turned)
    }}"""
    halves(command, save(text, v0=np.random.default_rng(0).standard_normal(V).astype(np.float16), w=W))


BODIES = {
    "if": """agraph (float[N, 4] x, bool c) => (float[N, 2] y) {
        a = MatMul (x, v) b = Relu (a)
        y = If (c) <then_branch = one () => (float[N, 2] t) { t = MatMul (b, w) },
                    else_branch = two () => (float[N, 2] e) { d = Sigmoid (b) e = MatMul (d, w) }>
    }""",
    "loop": """agraph (float[N, 4] x) => (float[N, 2] y) {
        a = MatMul (x, v) b = Relu (a) n = Constant <value_int = 3> () go = Cast <to = 9> (n)
        q = Loop (n, go, b) <body = turn (int64 i, bool c, float[N, 16] s) => (bool d, float[N, 16] r) {
            d = Identity (c) t = MatMul (s, u) r = Relu (t) }>
        y = MatMul (q, w)
    }""",
}


@pytest.mark.parametrize("kind", BODIES)
def test_weights_that_bodies_capture(command, save, kind):
    weights = {"u": (16, 16)} if kind == "loop" else {}
    refused(command, save(BODIES[kind], v=V, w=W, **weights), 4, "nothing can be pruned")


def test_local_functions(command, tmp_path):
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "my": 1]>
        agraph (float[N, 4] x) => (float[N, 2] y) { a = my.dense (x, p) y = MatMul (a, w) }
        <domain: "my", opset_import: ["": 17]>
        dense (x, q) => (y) { m = MatMul (x, q) y = Relu (m) }""")
    for name, shape in (("p", V), ("w", W)):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, tmp_path / "m.onnx")
    assert command("inspect", tmp_path / "m.onnx").code == 0
    assert command.slim(tmp_path / "m.onnx").code in (0, 4)


OUTPUTS = {
    "int64[N] y": "c = MatMul (b, w) y = ArgMax <axis = 1, keepdims = 0> (c)",
    "float[N, 1] t, int64[N, 1] y": "c = MatMul (b, w) k = Constant <value_ints = [1]> () t, y = TopK (c, k)",
    "int64[2, K] y": "c = MatMul (b, w) y = NonZero (c)",
    "seq(float[N, 2]) y": "c = MatMul (b, w) y = SequenceConstruct (c, c)",
    "bool[N, 2] y": "c = MatMul (b, w) z = Constant <value_float = 0.0> () y = Greater (c, z)",
    "float[N, 2] y, float[N, 2] z": "y = MatMul (b, w) z = Softmax (y)",
    "float[N, 2] y, float[N, 4] x": "y = MatMul (b, w)",
    "float[K, 2] y": """c = MatMul (b, w) s = ReduceMax <axes = [1], keepdims = 0> (c)
        z = Constant <value_float = 0.0> () t = Greater (s, z) y = Compress <axis = 0> (c, t)""",
}


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_outputs_of_every_kind(command, save, outputs):
    model = halves(command, save(f"agraph (float[N, 4] x) => ({outputs}) {{ {HEAD} {OUTPUTS[outputs]} }}", v=V, w=W))
    assert weights_of(model) == {"v": (4, 8), "w": (8, 2)}


def test_outputs_without_a_shape_or_a_type(command, save):
    for number, clear in enumerate(("shape", "type")):
        path = save(MLP, f"m{number}.onnx", v=V, w=W)
        model = onnx.load(path)
        value = model.graph.output[0]
        (value.type.tensor_type if clear == "shape" else value).ClearField(clear)
        onnx.save(model, path)
        halves(command, path)


def test_weights_that_are_outputs_stay(command, save):
    text = MLP.replace("(float[N, 2] y)", "(float[N, 2] y, float[16, 2] w)")
    refused(command, save(text, v=V, w=W), 4, "graph output 'w'")
    hidden = f"agraph (float[N, 4] x) => (float[N, 16] b, float[N, 2] y) {{ {HEAD} y = MatMul (b, w) }}"
    refused(command, save(hidden, v=V, w=W), 4, "graph output 'b'")


INPUTS = {
    "float[A, B, C] x": (MLP.partition("{")[2][:-1], "float[A, B, D] y"),
    "float[4] x": (MLP.partition("{")[2][:-1], "float[2] y"),
    "float[N, 4] x0, float s": (f"x = Mul (x0, s) {HEAD} y = MatMul (b, w)", "float[N, 2] y"),
    "float[N, 4] x, float[K, 7] unused": (f"{HEAD} y = MatMul (b, w)", "float[N, 2] y"),
    "int64[N, S] ids": (
        f"t = Gather (table, ids) x = ReduceMean <axes = [1]> (t) {HEAD} y = MatMul (b, w)",
        "float[N, A, B] y",
    ),
    "": (f"x = Identity (fixed) {HEAD} y = MatMul (b, w)", "float[3, 2] y"),
}


@pytest.mark.parametrize("inputs", INPUTS)
def test_inputs_of_every_kind(command, save, inputs):
    nodes, outputs = INPUTS[inputs]
    text = f"agraph ({inputs}) => ({outputs}) {{ {nodes} }}"
    extra = {"table": (9, 4)} if "Gather" in nodes else {"fixed": (3, 4)} if "fixed" in nodes else {}
    model = halves(command, save(text, v=V, w=W, **extra))
    assert weights_of(model)["w"] == (8, 2)


def test_inputs_that_need_a_shape(command, save):
    path = save(MLP, v=V, w=W)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    refused(command, path, 3, "--input-shape x:")


def test_inputs_that_get_a_shape(command, save):
    path = save(MLP, v=V, w=W)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    halves(command, path, "--input-shape", "x:1x4")


def test_inputs_that_cannot_be_drawn(command, save):
    refused(command, save("agraph (string[N] x) => (string[N] y) { y = Identity (x) }"), 3, "string")


NAMES = {
    "unnamed": ("", "", ""),
    "slashes": ("/net/a/MatMul", "/net/a/Relu", "/net/b/MatMul"),
    "unicode": ("größe", "☃/雪", "\u202eright to left"),
    "patterns": ("*", "[a]", "re:x"),
    "markup": ("[bold]", "[/]", "<script>alert(1)</script>"),
}


@pytest.mark.parametrize("names", NAMES)
def test_names_of_every_kind(command, save, tmp_path, names):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    path = save(MLP, v=V, w=W)
    model = onnx.load(path)
    for node, name in zip(model.graph.node, NAMES[names], strict=True):
        node.name = name
        for place, value in enumerate(node.output):
            node.output[place] = value if value == "y" else name + value
        for place, value in enumerate(node.input):
            node.input[place] = {"a": NAMES[names][0] + "a", "b": NAMES[names][1] + "b"}.get(value, value)
    onnx.save(model, path)
    page = tmp_path / "r.html"
    halves(command, path, "--save-plan", tmp_path / "p.json", "--report", page, "--report", tmp_path / "r.md")
    assert "<script>alert" not in page.read_text(encoding="utf-8")
    if names != "unnamed":
        assert command.slim(path, "--force", "--exclude", "nothing").code == 2
        assert command.slim(path, "--force", "--exclude", NAMES[names][0] + "a").code in (0, 4)


def test_two_nodes_of_one_name(command, save):
    path = save(MLP, v=V, w=W)
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = "same"
    onnx.save(model, path)
    refused(command, path, 3, "same")


def test_what_nobody_uses(command, save):
    path = save(MLP, v=V, w=W, unused=(50, 50), empty=np.zeros(0, np.float32))
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, [1]))
    onnx.save(model, path)
    halves(command, path)


def test_dimensions_of_size_zero(command, save):
    text = (
        "agraph (float[N, 4] x0) => (float[N, 2] y) { x = Concat <axis = 1> (x0, none) " + HEAD + " y = MatMul (b, w) }"
    )
    halves(command, save(text, v=V, w=W, none=np.zeros((1, 0), np.float32)))


def test_nodes_out_of_order(command, save):
    path = save(MLP, v=V, w=W)
    model = onnx.load(path)
    model.graph.node.reverse()
    onnx.save(model, path)
    halves(command, path)


def test_optional_inputs_that_are_left_out(command, save):
    text = """agraph (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, v) b = Clip (a, none, six) y = Conv (b, w, bias)
    }"""
    path = save(text, v=(16, 3, 3, 3), w=(2, 16, 1, 1), bias=(2,), six=np.float32(6))
    model = onnx.load(path)
    model.graph.node[1].input[1] = ""
    onnx.save(model, path)
    halves(command, path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30])
def test_weights_of_every_value(command, save, value):
    weight = np.random.default_rng(0).standard_normal(V).astype(np.float32)
    weight[1, 2] = value
    path = save(MLP, v=weight, w=W)
    assert command("inspect", path).code == 0
    result = command.slim(path)
    assert result.code in (0, 3)
    assert "Warning" not in result.err


def test_a_model_that_draws_random_numbers(command, save):
    tail = "c = MatMul (b, w) r = RandomNormalLike (c) y = Add (c, r)"
    refused(command, save(f"agraph (float[N, 4] x) => (float[N, 2] y) {{ {HEAD} {tail} }}", v=V, w=W), 3, "random")


def recurrent(save):
    text = """agraph (float[N, T] input, float[2, M, 16] state) => (float[N, 2] y, float[2, M, 16] next) {
        size = Shape (input) a = MatMul (input, v) b = Relu (a) c = MatMul (b, w) y = Identity (c)
        batch = Unsqueeze (b, front) next = Add (state, batch)
    }"""
    return save(text, v=(512, 16), w=W, front=np.array([0]))


def test_recurrent_states_have_a_batch_on_their_second_axis(command, save):
    """As voice activity detectors have: a window of 512 numbers, and a state (layers, batch, width)."""
    path = recurrent(save)
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    onnx.save(model, path)
    refused(command, path, 4, "nothing can be pruned")
