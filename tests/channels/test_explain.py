"""What ties a group: the nodes that write it, pass it on and sum over it."""

import json
from pathlib import Path

import pytest

from onnxprune.channels.explain import links
from onnxprune.channels.groups import analyze
from onnxprune.cli import main

MODEL = Path(__file__).resolve().parents[2] / "models" / "resnet.onnx"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(MODEL), *arguments])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_every_prunable_group_is_written_and_summed_by_somebody() -> None:
    channels = analyze(MODEL)
    found = links(channels)
    for group in channels.prunable:
        roles = {link.role for link in found[group.name]}
        assert {"writes", "sums"} <= roles
        assert any(link.node == group.name and link.role == "writes" for link in found[group.name])


def test_links_name_exactly_the_weights_of_the_group() -> None:
    channels = analyze(MODEL)
    found = links(channels)
    for group in channels.prunable:
        named = {axis for link in found[group.name] for axis in link.axes}
        assert {f"{axis.tensor}[{axis.dim}]" for axis in group.weights} <= named


def test_the_tree_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--group", "/stem/stem.0/Conv")
    assert code == 0
    assert "/stem/stem.0/Conv: 32 units of 1 channel, on " in out
    assert "written by" in out
    assert "(BatchNormalization)" in out
    assert "summed over by" in out


def test_a_frozen_group_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--json")
    rows = [row for row in json.loads(out)["groups"] if row["frozen"]]
    assert code == 0
    assert rows
    assert all(row["links"] and row["unit_size"] >= 1 for row in rows)


def test_an_unknown_group_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--group", "nothing")
    assert (code, out) == (2, "")
    assert "the selector 'nothing' matches no group" in err
