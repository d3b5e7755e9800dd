"""Models that are broken, hostile or beyond the runtime: one sentence, exit 3, nothing written."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SLIM = ("--channels", "0.5", "--no-latency")


def both_refuse(command, words, model, *options):
    command.refuses(3, words, "inspect", model, *options)
    command.refuses(3, words, "slim", model, *SLIM, *options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is not an ONNX model"),
        (b"hello, this is a text file\n", "is not an ONNX model"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\0" * 4096, "is not an ONNX model"),
    ],
)
def test_what_is_not_a_model(command, tmp_path, content, words):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    both_refuse(command, words, path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off(command, small, part):
    content = small.read_bytes()
    small.write_bytes(content[: int(len(content) * part)])
    both_refuse(command, "damaged or cut off", small)


def test_a_model_that_is_not_there_or_not_a_file(command, tmp_path):
    both_refuse(command, "does not exist", tmp_path / "none.onnx")
    both_refuse(command, "folder", tmp_path)
    both_refuse(command, "not", "/dev/null")
    both_refuse(command, "does not exist", "x" * 300)
    command.refuses(3, "folder", "slim", "/", *SLIM)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (("inspect", pipe), ("slim", pipe, *SLIM)):
        result = command(*arguments)
        assert (result.code, "not a plain file" in result.err) == (3, True)


def test_an_empty_graph(command, tmp_path):
    for number, model in enumerate((onnx.ModelProto(ir_version=8), helper.make_model(onnx.GraphProto(), ir_version=8))):
        path = tmp_path / f"m{number}.onnx"
        path.write_bytes(model.SerializeToString())
        both_refuse(command, "graph", path)


def test_a_newer_format(command, save):
    path = save("agraph (float[1] x) => (float[1] y) { y = Relu (x) }", ir_version=99)
    both_refuse(command, "IR version 99", path)


def test_a_format_that_only_the_runtime_does_not_know(command, save):
    path = save("agraph (float[1, 4] x) => (float[1, 2] y) { a = MatMul(x, v) y = MatMul (a, w) }",
                ir_version=onnx.IR_VERSION, opset=17, v=(4, 8), w=(8, 2))  # fmt: skip
    assert command("inspect", path).code == 0
    result = command("slim", path, *SLIM)
    assert result.code in (0, 3)  # as the installed runtime will have it
    assert "Traceback" not in result.err


def test_an_operator_that_nothing_runs(command, save):
    path = save(
        """agraph (float[1, 4] x) => (float[1, 2] y) { a = MatMul (x, v) b = nowhere.Strange (a) y = MatMul (b, w) }"""
        .replace("agraph", "agraph"), v=(4, 8), w=(8, 2),
    )  # fmt: skip
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    onnx.save(model, path)
    seen = command("inspect", path)
    assert seen.code == 0
    assert "Strange" in seen.out
    command.refuses(3, "Strange", "slim", path, *SLIM)


def test_graphs_that_no_order_can_run(command, save):
    cycle = "agraph (float[1] x) => (float[1] y) { a = Add (x, b) b = Relu (a) y = Relu (b) }"
    both_refuse(command, "cycle", save(cycle))
    both_refuse(command, "reads 'q'", save("agraph (float[1] x) => (float[1] y) { y = Add (x, q) }"))
    both_refuse(command, "'z'", save("agraph (float[1] x) => (float[1] z) { y = Relu (x) }"))
    twice = "agraph (float[1] x) => (float[1] y) { y = Relu (x) y = Sigmoid (x) }"
    both_refuse(command, "defined twice", save(twice))


def test_weights_that_do_not_fill_their_shape(command, small):
    model = onnx.load(small)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    onnx.save(model, small)
    both_refuse(command, "tensor 'w1' does not hold", small)
    for dims in ([10**12], [-4, 4], [2**62, 2**62]):
        model.graph.initializer[0].dims[:] = dims
        onnx.save(model, small)
        both_refuse(command, "tensor 'w1' does not hold", small)
    model.graph.initializer[0].ClearField("raw_data")
    onnx.save(model, small)
    both_refuse(command, "tensor 'w1' does not hold", small)


def test_types_that_no_version_knows(command, small):
    model = onnx.load(small)
    model.graph.initializer[0].data_type = 999
    onnx.save(model, small)
    both_refuse(command, "element type 999", small)


def test_nodes_that_are_newer_than_the_opset(command, small):
    model = onnx.load(small)
    model.opset_import[0].version = 1
    onnx.save(model, small)
    assert command("inspect", small).code == 0
    command.refuses(3, "Gemm", "slim", small, *SLIM)


def test_attributes_that_make_no_sense_still_can_be_inspected(command, save):
    text = """agraph (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) { a = Conv <group = 0> (x, v) y = Conv (a, w) }"""
    path = save(text, v=(16, 3, 1, 1), w=(2, 16, 1, 1))
    command.refuses(3, "Conv", "slim", path, *SLIM)
    assert command("inspect", path).code == 0


# Weights in other files


def external(path: Path, location: str, offset: int | None = None, length: int | None = None) -> Path:
    """Saves a model whose 32 numbers lie in a file."""
    tensor = TensorProto(name="w", dims=[4, 8], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    text = "agraph (float[N, 4] x) => (float[N, 2] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, v) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{text}')
    model.graph.initializer.extend([tensor, numpy_helper.from_array(np.ones((8, 2), np.float32), "v")])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def weights(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(np.arange(32, dtype=np.float32).tobytes())
    return path


def test_weights_beside_the_model(command, tmp_path):
    weights(tmp_path / "in" / "w.bin")
    model = external(tmp_path / "in" / "m.onnx", "w.bin", 0, 128)
    assert command("inspect", model).code == 0
    before = command.files()
    assert command.slim(model).code == 0
    after = command.files()
    assert before.items() < after.items()
    assert all(".tmp" not in name for name in after)


def test_weights_that_are_missing(command, tmp_path):
    both_refuse(command, "'w.bin'", external(tmp_path / "m.onnx", "w.bin"))


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", "..\\w.bin", "C:\\w.bin", "", "."])
def test_weights_outside_the_folder(command, tmp_path, location):
    weights(tmp_path / "w.bin")
    both_refuse(command, "tensor 'w'", external(tmp_path / "in" / "m.onnx", location))


def test_an_absolute_path_is_never_followed(command, tmp_path):
    inside = weights(tmp_path / "in" / "w.bin")
    both_refuse(command, "not inside the folder", external(tmp_path / "in" / "m.onnx", str(inside)))


def test_links_need_an_admitted_folder(command, tmp_path):
    outside = weights(tmp_path / "out" / "w.bin")
    model = external(tmp_path / "in" / "m.onnx", "w.bin")
    link = tmp_path / "in" / "w.bin"
    for make, words in ((link.symlink_to, "a link"), (link.hardlink_to, "a hard link")):
        make(outside)
        both_refuse(command, words, model)
        both_refuse(command, "--external-root", model, "--external-root", tmp_path / "in" / "sub")
        root = tmp_path / ("out" if words == "a link" else "in")
        assert command("inspect", model, "--external-root", root).code == 0
        result = command.slim(model, "--external-root", root, "--force", "-q")
        assert result.code == 0, result
        link.unlink()
        (tmp_path / "in" / "m.slim.onnx").unlink()


def test_a_link_in_a_circle(command, tmp_path):
    model = external(tmp_path / "m.onnx", "w.bin")
    (tmp_path / "w.bin").symlink_to(tmp_path / "w.bin")
    both_refuse(command, "'w.bin'", model)


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [
        (4, 128, "ends before"),
        (10**17, None, "ends before"),
        (None, 10**6, "where it needs 128"),
        (0, 64, "where it needs 128"),
        (-4, None, "'-4'"),
        ("x", None, "'x'"),
        (None, "9" * 40, "is not a whole number"),
    ],
)
def test_weights_past_the_end(command, tmp_path, offset, length, words):
    weights(tmp_path / "w.bin")
    both_refuse(command, words, external(tmp_path / "m.onnx", "w.bin", offset, length))


def test_a_folder_or_device_is_no_weights_file(command, tmp_path):
    (tmp_path / "w.bin").mkdir()
    both_refuse(command, "'w.bin'", external(tmp_path / "m.onnx", "w.bin"))


def test_damage_anywhere_is_an_error_or_a_model(command, small):
    """Every damaged copy is read, or refused in words; nothing is a bug of ours."""
    content = small.read_bytes()
    generator = np.random.default_rng(5)
    spots = [*generator.integers(0, len(content), 20), *range(20), *range(len(content) - 300, len(content) - 9, 6)]
    for spot in spots:
        damaged = bytearray(content)
        damaged[spot] ^= 1 << int(generator.integers(0, 8))
        small.write_bytes(damaged)
        result = command("inspect", small)
        assert result.code in (0, 3), (spot, result)
        assert "a bug in" not in result.err
