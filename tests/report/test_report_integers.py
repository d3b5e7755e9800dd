"""What became integers, and which rules of a target a file breaks: the same in all formats."""

import io
import json
from dataclasses import replace

import pytest
from report_samples import checked, full_report
from rich.console import Console

from onnxprune.report import findings, integers, summary
from onnxprune.report.console import render
from onnxprune.report.markdown import to_markdown
from onnxprune.report.schema import FindingRow, Fusion, LeftNode, Quantization, Report, Side

SENTENCE = "int8 for ort-cpu: 50 of 53 operators with weights, 48 run on integers in ONNX Runtime"
FOUND = "2 rules of tensorrt are broken, at 5 nodes, 1 hint"


def printed(report, *, full=False):
    stream = io.StringIO()
    render(report, Console(file=stream, width=110), full=full)
    return stream.getvalue()


def page_of(report):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    from onnxprune.report.html import to_html

    return to_html(report).replace("\N{NO-BREAK SPACE}", " ")


def test_the_sentence_says_what_was_quantized_and_what_runs_on_integers():
    report = full_report()
    assert integers.integers_sentence(report) == SENTENCE
    fake = replace(report, quantization=Quantization("tensorrt", 1, 1, (), Fusion()))
    assert integers.integers_sentence(fake) == "int8 for tensorrt: 1 of 1 operator with weights"


def test_other_forms_are_called_by_their_names():
    half = Report("slim", after=Side(), quantization=Quantization("ort-cuda", 0, 0, form="fp16"))
    assert integers.integers_sentence(half) == "fp16 for ort-cuda"
    blocks = Quantization("ort-cpu", 3, 4, (), Fusion(3, 3), "int4 weights")
    words = "int4 weights for ort-cpu: 3 of 4 operators with weights, 3 run on integers in ONNX Runtime"
    assert integers.integers_sentence(replace(half, quantization=blocks)) == words


def test_all_formats_say_what_became_integers():
    report = full_report()
    assert SENTENCE in printed(report)
    assert "  as it was: fc: its weights are half zero\n" in printed(report)
    assert f"I{SENTENCE[1:]}." in to_markdown(report)
    assert "| its weights are half zero | `fc` |" in to_markdown(report)
    page = page_of(report)
    assert f"{SENTENCE}." in page
    assert "as it was: its weights are half zero" in page


def test_nodes_that_stay_are_grouped_and_folded():
    many = (LeftNode("odd", "it is odd"), *(LeftNode(f"n{number}", "it is alone") for number in range(9)))
    report = replace(full_report(), quantization=Quantization("ort-cpu", 3, 13, many, Fusion(3, 3)))
    assert [reason for reason, _ in integers.left_reasons(report)] == ["it is alone", "it is odd"]
    text, full = printed(report), printed(report, full=True)
    assert "  as it was: n0, n1, n2 and 6 more: it is alone\n" in text
    assert "n8" not in text
    assert "n7, n8: it is alone\n" in full


def test_a_report_without_integers_says_nothing_of_them():
    report = replace(full_report(), quantization=Quantization())
    assert "int8" not in printed(report) + summary.headline(report)
    assert "## Integers" not in to_markdown(report)
    assert 'id="integers"' not in page_of(report)


def test_findings_are_grouped_by_rule_violations_first():
    rows = findings.rules(checked())
    assert [(row.rule, row.level, len(row.findings)) for row in rows] == [
        ("tensorrt/zero-point", "violation", 5),
        ("tensorrt/bias", "violation", 1),
        ("onnx/scale", "hint", 1),
    ]
    assert findings.sentence(checked()) == summary.headline(checked()) == FOUND
    assert not findings.accepted(checked())


def test_hints_are_no_violations():
    report = replace(checked(), findings=checked().findings[:1])
    assert findings.accepted(report)
    assert findings.sentence(report) == "no rule of tensorrt is broken, 1 hint"
    assert findings.sentence(replace(report, findings=())) == "no rule of tensorrt is broken"


def test_all_formats_say_what_was_found():
    report = checked()
    text, full = printed(report), printed(report, full=True)
    assert "tensorrt/zero-point at 5 nodes\n  why: zero points are 0\n  fix: calibrate <b>symmetrically</b>\n" in text
    assert "    q0: it is 0\n" in text
    assert "    ... and 2 more: -v lists all\n" in text
    assert "q4" not in text
    assert "    q4: it is 4\n" in full
    assert "onnx/scale (hint) at 1 node\n" in text
    assert text.endswith(FOUND + "\n")
    assert "violations" not in text  # the table of the pattern of zeros
    words = to_markdown(report)
    assert f"{FOUND}." in words
    assert "`q4` (it is 4)" in words
    assert "| `onnx/scale (hint) at 1 node` | `a\\|b` |" in words
    assert "<b>" not in words.replace("\\<b\\>", "")
    page = page_of(report)
    assert f"{FOUND}." in page
    assert "<code>q4</code> it is 4" in page
    assert "<b>" not in page
    assert 'id="patterns"' not in page


def test_findings_survive_json():
    report = checked()
    data = json.loads(report.to_json())
    assert data["findings"][1] == {
        "rule": "tensorrt/zero-point", "node": "q0", "why": "zero points are 0",
        "fix": "calibrate <b>symmetrically</b>", "level": "violation", "detail": "it is 0",
    }  # fmt: skip
    assert Report.from_dict(data) == report


def test_a_finding_about_the_whole_file_names_no_node():
    row = FindingRow("ort-cpu/nothing", "", "nothing is quantized", "quantize it", "hint")
    text = printed(replace(checked(), findings=(row,)))
    assert "ort-cpu/nothing (hint)\n  why: nothing is quantized\n  fix: quantize it\n" in text
