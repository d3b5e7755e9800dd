"""What ``inspect`` says: sizes of the MACs, selectors, trees, and the node and the reason of every frozen axis."""

import json
from itertools import pairwise

import pytest

DYNAMIC = "agraph (float[N, 3, H, W] x) => (float[N, 4] y) { %s y = MatMul (f, m) }"
BODY = "a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Relu (a) e = GlobalAveragePool (b) f = Flatten (e)"


@pytest.fixture
def dynamic(save):
    """One convolution of 16 channels over an image of any size, and a classifier."""
    return save(DYNAMIC % BODY, w=(16, 3, 3, 3), m=(16, 4))


@pytest.fixture
def deep(save):
    """A chain of 40 convolutions, named by their outputs."""
    names = ["x", *(f"c{number}" for number in range(40))]
    nodes = " ".join(f"{new} = Conv ({old}, w{new})" for old, new in pairwise(names))
    weights = {f"wc{number}": (8, 8 if number else 3, 1, 1) for number in range(40)}
    text = f"agraph (float[N, 3, 4, 4] x) => (float[N, 8, 4, 4] y) {{ {nodes} y = Relu (c39) }}"
    return save(text, **weights)


def inspected(command, model, *arguments):
    result = command("inspect", model, "--json", *arguments)
    assert (result.code, result.err) == (0, ""), result
    return json.loads(result.out)


def test_the_sizes_at_which_macs_were_counted_are_named(command, dynamic, small):
    report = inspected(command, dynamic)
    assert report["input_shapes"] == {"x": [1, 3, 64, 64]}
    assert report["before"]["macs"] == 64 * 64 * 16 * 27 + 64
    assert "1.77 MMAC at x:1x3x64x64" in command("inspect", dynamic).out
    given = inspected(command, dynamic, "--input-shape", "x:1x3x32x16")
    assert given["input_shapes"] == {"x": [1, 3, 32, 16]}
    assert given["before"]["macs"] == 32 * 16 * 16 * 27 + 64
    assert "at x:1x3x32x16" in command("inspect", dynamic, "--input-shape", "x:1x3x32x16").out
    assert inspected(command, small)["input_shapes"] == {"x": [1, 3, 8, 8]}  # the batch is free


def test_fixed_sizes_need_no_words(command, save):
    fixed = save("agraph (float[1, 4] x) => (float[1, 8] y) { y = MatMul (x, w) }", w=(4, 8))
    assert inspected(command, fixed)["input_shapes"] == {}
    assert " at x:" not in command("inspect", fixed).out


def test_every_report_names_the_sizes(command, dynamic, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"r{suffix}" for suffix in (".md", ".html")]
    options = [item for file in files for item in ("--report", file)]
    for run in (command("inspect", dynamic, *options), command.slim(dynamic, *options)):
        assert run.code == 0, run
        assert all("x:1x3x64x64" in text for text in (run.out, *(file.read_text() for file in files)))
    report = json.loads(command.slim(dynamic, "--json", "--force").out)
    assert report["input_shapes"] == {"x": [1, 3, 64, 64]}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a"]),
        ("op:Conv", ["a", "c"]),
        ("op:Relu", ["a", "c"]),
        ("w2", ["a", "c"]),
        ("re:^c$", ["c"]),
        ("*", ["a", "c", "y", "w1#2"]),
        ("w3", ["c", "y"]),
    ],
)
def test_groups_are_selected_as_everywhere(command, small, pattern, names):
    out = command("inspect", small, "--group", pattern).out
    heads = [line.partition(":")[0] for line in out.splitlines() if line[:1].strip()]
    assert sorted(heads) == sorted(names)
    assert sorted(inspected(command, small, "--group", pattern)["selected"]) == sorted(names)


def test_a_group_that_nothing_selects_is_an_error_before_any_report(command, small, tmp_path):
    report = ("--report", tmp_path / "r.json")
    for pattern in ("nothing*", "op:LSTM", "re:^zzz", "re:("):
        command.refuses(2, f"{pattern!r}", "inspect", small, "--group", pattern, *report)
        command.refuses(2, f"{pattern!r}", "inspect", small, "--group", "a", "--group", pattern, "--json", *report)


def test_a_tree_says_what_a_group_is(command, small):
    assert command("inspect", small, "--group", "a").out.splitlines() == [
        "a: 32 units of 1 channel, on 5 axes",
        "  written by     a (Conv): b1[0], w1[0], a[1]",
        "  passed on by   b (Relu): a[1], b[1]",
        "  summed over by c (Conv): w2[1], b[1]",
    ]
    assert "  cannot go: is the graph output 'y'" in command("inspect", small, "--group", "y").out.splitlines()


def test_a_tree_says_that_groups_go_together(command, save):
    body = "a = Conv (x, w) b = Conv <group = 2> (a, v) y = Conv (b, u)"
    model = save(
        f"agraph (float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y) {{ {body} }}",
        w=(8, 3, 1, 1),
        v=(6, 4, 1, 1),
        u=(5, 6, 1, 1),
    )
    tree = command("inspect", model, "--group", "a").out
    assert tree.startswith("a: 8 units of 1 channel, as many from each of 2 blocks, on ")
    assert "v[1]" in tree
    rows = {group["name"]: group["blocks"] for group in inspected(command, model)["groups"]}
    assert (rows["a"], rows["b"]) == (2, 2)


def test_every_frozen_axis_names_the_node_and_the_reason(command, small):
    rows = inspected(command, small)["frozen"]
    assert [(row["node"], row["op"], row["tensor"], row["axis"], row["size"]) for row in rows] == [
        ("a", "Conv", "w1", 1, 3), ("a", "Conv", "w1", 2, 3), ("a", "Conv", "w1", 3, 3), ("c", "Conv", "w2", 2, 3),
        ("c", "Conv", "w2", 3, 3), ("y", "Gemm", "w3", 1, 4),
    ]  # fmt: skip
    assert [row["reason"] for row in rows if row["size"] == 4 or row["axis"] == 1] == [
        "is the graph input 'x'", "is the graph output 'y'",
    ]  # fmt: skip
    assert {row["reason"] for row in rows if row["axis"] > 1} == {"spatial or kernel axis"}
    assert not any(row["inexact"] for row in rows)
    out = command("inspect", small).out
    assert "frozen: 2 groups" in out
    assert "    a (Conv): w1[1]" in out
    assert "    y (Gemm): w3[1]" in out
    assert "spatial or kernel axes: 4, of 2 nodes" in out


def test_the_node_behind_a_stored_computation_is_named(command, save):
    text = """agraph (float[N, 4] x) => (float[N, 8] y) {
        i = Identity (w) t = Transpose <perm = [1, 0]> (i) h = MatMul (x, t) y = Relu (h) }"""
    rows = inspected(command, save(text, w=(8, 4)))["frozen"]
    assert {(row["node"], row["op"]) for row in rows} == {("h", "MatMul")}
    assert len(rows) == 2


def test_a_group_is_not_called_after_a_copy_of_its_weight(command, save):
    text = """agraph (float[N, 4] x) => (float[N, 2] y) {
        i = Identity (w) j = Identity (w) h = MatMul (x, i) r = Relu (h) y = MatMul (r, v) }"""
    groups = inspected(command, save(text, w=(4, 8), v=(8, 2)))["groups"]
    assert [group["name"] for group in groups if group["frozen"] is None] == ["h"]


def test_what_goes_with_inexact_says_so(command, save):
    text = """agraph (float[N, 4] x) => (float[N, 2] y) {
        h = MatMul (x, w) n = LayerNormalization <axis = -1> (h, s) y = MatMul (n, m) }"""
    model = save(text, w=(4, 8), s=(8,), m=(8, 2))
    rows = [row for row in inspected(command, model)["frozen"] if row["inexact"]]
    assert {row["tensor"] for row in rows} == {"w", "s", "m"}
    line = next(line for line in command("inspect", model).out.splitlines() if "(--inexact lets it go)" in line)
    assert "'n' (LayerNormalization) takes a statistic over it" in line


def test_long_lists_are_folded_and_unfolded(command, deep):
    short, long = command("inspect", deep).out, command("inspect", deep, "-v").out
    assert len(short.splitlines()) <= 40
    assert "... and 27 more: -v lists all" in short
    assert "more" not in long
    assert all(f"\nc{number} " in long for number in range(39))
    tree, whole = (command("inspect", deep, "--group", "*", *more).out for more in ((), ("-v",)))
    assert len(tree.splitlines()) <= 60
    assert "... and 29 more groups: -v lists all" in tree
    assert whole.count("units of") == 41


def test_a_long_tree_is_folded(command, save):
    nodes = "c0 = Conv (x, w) " + " ".join(f"c{number + 1} = Relu (c{number})" for number in range(30))
    text = f"agraph (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {{ {nodes} y = Conv (c30, v) }}"
    model = save(text, w=(8, 3, 1, 1), v=(2, 8, 1, 1))
    out = command("inspect", model, "--group", "c0").out
    assert "... and 24 more: -v lists all" in out
    assert len(out.splitlines()) == 10
    assert len(command("inspect", model, "--group", "c0", "-v").out.splitlines()) == 33
