import json
import os
import stat

import numpy as np
import pytest
from report_samples import full_report, inspection

from onnxprune.errors import OutputError, UsageError
from onnxprune.report.schema import Fidelity, Latency, Ratios, Report, Side

SIDE = {
    "path": None,
    "sha256": None,
    "parameters": None,
    "nonzero_parameters": None,
    "macs": None,
    "bytes": None,
    "compressed_bytes": None,
    "nodes": None,
    "latency_ms": dict.fromkeys(("min", "mean", "median", "p90", "p95", "p99", "max", "throughput")),
    "metrics": {"top1": None},
}
KEYS = {
    "schema": None,
    "command": None,
    "options": {"channels": None, "exclude": [], "int8": None, "layers": None},
    "environment": dict.fromkeys(("onnxprune", "onnx", "onnxruntime", "provider", "cpu", "threads", "seed")),
    "before": SIDE,
    "after": SIDE,
    "ratios": {
        "parameters": None,
        "macs": None,
        "bytes": None,
        "latency": {"median": None, "low": None, "high": None},
    },
    "fidelity": {"agreement": None, "cosine": None, "sqnr_db": None, "max_abs": None},
    "proof": {
        "checked": None,
        "max_abs": None,
        "relative": None,
        "passed": None,
        "inexact_groups": [],
        "limit": None,
        "samples": None,
        "random_inputs": None,
        "float64": None,
    },
    "groups": [
        {
            **dict.fromkeys(("name", "units", "removed", "exact", "frozen", "axes", "unit_size", "blocks")),
            "links": [{"node": None, "op": None, "role": None, "axes": []}],
        }
    ],
    "input_shapes": {"image": []},
    "selected": [],
    "frozen": [dict.fromkeys(("node", "op", "tensor", "axis", "size", "group", "reason", "inexact"))],
    "blocks": [dict.fromkeys(("name", "dropped", "reason", "parameters", "parent", "score"))],
    "nodes": [{"name": None, "op": None, "macs_before": None, "macs_after": None, "ms_before": None, "ms_after": None}],
    "sparsity": {
        "pattern": None,
        "fraction": None,
        "tensors": [dict.fromkeys(("name", "fraction", "pattern", "node", "axis", "groups", "violations", "reason"))],
        "dense": [{"node": None, "reason": None}],
    },
    "quantization": {
        "target": None,
        "quantized": None,
        "eligible": None,
        "left": [{"node": None, "reason": None}],
        "fusion": {"fused": None, "eligible": None},
        "form": None,
    },
    "findings": [dict.fromkeys(("rule", "node", "why", "fix", "level", "detail"))],
    "models": [
        {
            "name": None,
            "latency_ms": dict.fromkeys(("min", "mean", "median", "p90", "p95", "p99", "max", "throughput")),
            "ratio": {"median": None, "low": None, "high": None},
        }
    ],
    "recovery": {
        "method": None,
        "layers": [{"node": None, "error_before": None, "error_after": None, "kept": None}],
    },
    "allocations": [dict.fromkeys(("name", "macs", "parameters", "divergence", "chosen"))],
    "warnings": [],
    "seconds": {"total": None, "analyze": None},
}


def keys_of(value):
    if isinstance(value, dict):
        return {key: keys_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [keys_of(value[0])] if value and isinstance(value[0], dict) else []
    return None


def test_the_keys_are_the_stable_ones_and_no_others():
    assert keys_of(full_report().to_dict()) == KEYS


def test_schema_stands_first_and_is_1():
    assert next(iter(json.loads(full_report().to_json()).items())) == ("schema", 1)


def test_what_was_not_measured_is_null():
    data = json.loads(inspection().to_json())
    assert data["after"] is None
    assert data["before"]["latency_ms"] is None
    assert data["before"]["sha256"] is None
    assert data["ratios"] == {
        "parameters": None,
        "macs": None,
        "bytes": None,
        "latency": {"median": None, "low": None, "high": None},
    }
    assert set(data["fidelity"].values()) == {None}
    assert data["proof"]["passed"] is None
    assert data["sparsity"]["fraction"] is None
    assert data["quantization"]["quantized"] is None
    assert data["recovery"]["method"] is None
    assert data["nodes"][0]["ms_before"] is None


def test_round_trip():
    for report in (full_report(), inspection()):
        assert Report.from_dict(json.loads(report.to_json())) == report


def test_round_trip_notices_a_changed_figure():
    data = full_report().to_dict()
    data["groups"][0]["removed"] += 1
    assert Report.from_dict(data) != full_report()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_figures_that_are_not_finite_become_null(value):
    report = Report("slim", before=Side(metrics={"top1": value}), fidelity=Fidelity(sqnr_db=value))
    data = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in the JSON report"))
    assert data["fidelity"]["sqnr_db"] is None
    assert data["before"]["metrics"] == {"top1": None}


def test_numpy_values_become_plain_ones():
    report = Report("slim", {"shape": np.array([1, 3]), "flag": np.bool_(True)}, before=Side(parameters=np.int64(7)))
    data = report.to_dict()
    assert data["options"] == {"shape": [1, 3], "flag": True}
    assert type(data["before"]["parameters"]) is int
    assert type(data["options"]["flag"]) is bool


def test_ratios_are_after_by_before():
    ratios = Ratios.between(
        Side(parameters=100, macs=0, latency_ms=Latency(median=4.0)),
        Side(parameters=25, macs=0, latency_ms=Latency(median=3.0)),
    )
    assert ratios.parameters == 0.25
    assert ratios.macs is None
    assert ratios.bytes is None
    assert ratios.latency.median == 0.75
    assert ratios.latency.low is None
    assert Ratios.between(Side(parameters=1), None) == Ratios()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"schema": 2, "command": "slim"},
        {"schema": 1},
        {"schema": 1, "command": "slim", "groups": 3},
        {"schema": 1, "command": "slim", "before": []},
        {"schema": 1, "command": "slim", "groups": [{"name": "no units"}]},
        [],
    ],
)
def test_other_json_is_refused_in_words(data):
    with pytest.raises(UsageError, match="schema"):
        Report.from_dict(data)


@pytest.mark.parametrize(
    ("suffix", "start"), [(".json", '{\n  "schema": 1'), (".md", "# onnxprune"), (".html", "<!DOCTYPE")]
)
def test_save_picks_the_format_by_the_suffix(tmp_path, suffix, start):
    path = tmp_path / f"report{suffix}"
    path.write_text("earlier")
    full_report().save(str(path))
    assert path.read_text(encoding="utf-8").startswith(start)
    assert os.listdir(tmp_path) == [path.name]


def test_a_saved_report_has_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        full_report().save(tmp_path / "report.json")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["report.txt", "report", ".json"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"use one of \.json, \.md, \.html"):
        full_report().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        full_report().save(tmp_path / "no such folder" / "report.json")
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        full_report().save(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_write_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("earlier")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        full_report().save(path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_no_valid_text_can_be_saved(tmp_path):
    report = Report("slim", before=Side(path="bad\udc80name.onnx"))
    for suffix in (".json", ".md", ".html"):
        report.save(tmp_path / f"report{suffix}")
    assert json.loads((tmp_path / "report.json").read_text())["before"]["path"] == "bad\udc80name.onnx"
