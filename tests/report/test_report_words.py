import io
import re
from dataclasses import replace

import pytest
from report_samples import full_report, inspection
from rich.console import Console

from onnxprune.report import grains, summary, units
from onnxprune.report.console import render, render_inspection
from onnxprune.report.markdown import to_markdown
from onnxprune.report.schema import (
    AllocationRow,
    BlockRow,
    GroupRow,
    LatencyRatio,
    Proof,
    Ratios,
    Recovery,
    Report,
    Side,
    Sparsity,
)


def printed(report, draw=render, encoding=None, terminal=False):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding or "utf-8")
    draw(
        report, Console(file=stream, width=110, force_terminal=terminal, color_system="truecolor" if terminal else None)
    )
    stream.flush()
    return stream.buffer.getvalue().decode(encoding or "utf-8")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (units.count(25_557_032), "25.6 M"),
        (units.count(999), "999"),
        (units.count(999_950), "1.00 M"),
        (units.count(0), "0"),
        (units.macs(4.1e9), "4.10 GMAC"),
        (units.size(97_500_000), "97.5 MB"),
        (units.milliseconds(0.0042), "4.20 us"),
        (units.milliseconds(12.34), "12.3 ms"),
        (units.milliseconds(None), "not measured"),
        (units.seconds(125), "2 min 5 s"),
        (units.change(0.48), "-52 %"),
        (units.change(1.2), "+20 %"),
        (units.change(1.0), "no change"),
        (units.change(0.0004), "-99.96 %"),
        (units.change(0.0), "-100 %"),
        (units.speed(0.5), "2.00x faster"),
        (units.speed(1.25), "1.25x slower"),
        (units.metric("top1", 0.921), "92.1 %"),
        (units.metric("mse", 0.012345), "0.01235"),
        (units.small(1e-4), "1e-04"),
        (units.printable("a\x1b[31mb\u202e"), "a\ufffd[31mb\ufffd"),
    ],
)
def test_units(words, text):
    assert words == text


def test_the_console_shows_figures_proof_and_reasons():
    text = printed(full_report())
    for part in (
        "25.6 M",
        "12.8 M",
        "4.09 GMAC",
        "51.2 MB",
        "2.00x faster (1.92x to 2.08x)",
        "92.1 %",
        "-0.2 points",
        "differ by at most 2.1e-06 of the largest output (limit 1e-04), on 32 samples",
        "same answer on 95.0 % of the samples",
        "... and 39 more: -v lists all",
        "frozen: 3 groups",
        "2 groups: no channel rule for Odd",
        "warning: free dimension 'batch' was set to 1",
    ):
        assert part in text


def test_the_console_honours_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    bad = replace(full_report(), proof=Proof(True, 1.0, 0.5, False))
    assert "\x1b[1;31m" in printed(bad, terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in printed(bad, terminal=True)
    assert ";31m" not in printed(bad, terminal=True)


def test_the_console_prints_names_as_they_are():
    name = "[bold]conv[/bold] :smile: \x1b[2J"
    report = replace(full_report(), groups=(GroupRow(name, 8, 4),), warnings=("[red]hot[/red]",))
    text = printed(report)
    assert "[bold]conv[/bold] :smile: \ufffd[2J" in text
    assert "[red]hot[/red]" in text


def test_the_console_writes_on_a_terminal_without_unicode():
    report = replace(full_report(), warnings=("层",))
    assert "warning: ?" in printed(report, encoding="ascii")


def test_an_inspection_shows_what_can_go_and_what_not():
    for draw in (render, render_inspection):
        text = printed(inspection(), draw)
        assert "64 units in 1 channel group can be pruned" in text
        assert "1 group: graph output 'logits'" in text
        assert "proof" not in text
        assert "after" not in text


def test_figures_that_were_not_measured_say_so():
    report = Report("slim", after=Side(parameters=10), before=Side(parameters=20))
    assert printed(report).count("not measured") >= 6
    assert "| latency (median) | not measured | not measured | not measured |" in to_markdown(report)


def test_a_fall_of_the_metric_is_said_first():
    report = full_report()
    after = replace(report.after, metrics={"top1": 0.34})
    notice = summary.notices(replace(report, after=after, recovery=Recovery()))[0]
    assert notice.level == "bad"
    assert notice.text == "Top-1 accuracy fell from 92.1 % to 34.0 %: no repair was applied."
    kept = summary.notices(replace(report, after=replace(report.after, metrics={"top1": 0.9209})))
    assert not any("accuracy" in notice.text for notice in kept)


def test_an_error_metric_that_rises_is_worse():
    report = Report("slim", before=Side(metrics={"mse": 0.1}), after=Side(metrics={"mse": 0.2}))
    assert any(notice.text.startswith("Mean squared error rose") for notice in summary.notices(report))
    better = Report("slim", before=Side(metrics={"mse": 0.2}), after=Side(metrics={"mse": 0.1}))
    assert not any("squared" in notice.text for notice in summary.notices(better))


def test_agreement_falls_from_all():
    report = Report("slim", after=Side(metrics={"agreement": 0.9}))
    assert any("Agreement fell from 100.0 % to 90.0 %" in notice.text for notice in summary.notices(report))


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (LatencyRatio(1.2, 1.1, 1.3), "1.20x slower"),
        (LatencyRatio(0.98, 0.9, 1.05), "not measurably faster"),
        (LatencyRatio(), "Latency was not measured"),
    ],
)
def test_a_result_that_is_not_faster_is_said_so(ratio, text):
    report = replace(full_report(), ratios=Ratios(latency=ratio))
    assert any(text in notice.text for notice in summary.notices(report))


def test_the_proof_in_words():
    report = full_report()
    failed = replace(report, proof=Proof(True, 1.0, 0.5, False, limit=1e-4, random_inputs=True))
    assert "FAILED" in summary.proof_sentence(failed)
    assert "on random inputs" in summary.proof_sentence(failed)
    assert summary.notices(failed)[0].text.startswith("The proof failed")
    doubted = replace(report, proof=Proof(True, 1.0, 0.5, True, limit=1e-4, float64=3e-13))
    assert summary.proof_sentence(doubted).endswith(
        "by at most 0.5 of the largest output (limit 1e-04), in float64 by 3e-13"
    )
    unproved = replace(report, proof=Proof())
    assert summary.proof_sentence(unproved) == "proof: not run"
    assert any("was not run" in notice.text for notice in summary.notices(unproved))


def test_markdown_holds_the_figures():
    text = to_markdown(full_report())
    for part in (
        "| parameters | 25.6 M | 12.8 M | -50 % |",
        "| latency (median) | 24.0 ms | 12.0 ms | 2.00x faster (1.92x to 2.08x) |",
        "| top-1 accuracy | 92.1 % | 91.9 % | -0.2 points |",
        "| `conv0` | 64 | 32 | 50 % |  |",
        "| no channel rule for Odd | 2 | `odd (Odd): odd.weight[0]`, `odd_b` |",
        "`fc (Gemm): fc.weight[0] and 1 other axis`",
        "Spatial or kernel axes: 1, of 1 node.",
        "MACs are counted at `image:1x3x224x224`.",
        "Outside the proof: `norm`.",
        "b" * 64,
        "| option `exclude` | `op:Gemm` |",
    ):
        assert part in text


def test_markdown_names_cannot_become_markup():
    report = replace(
        full_report(),
        groups=(GroupRow("a`|b", 8, 4), GroupRow("c", 8, frozen="<img src=x> | [x](y)")),
    )
    text = to_markdown(report)
    assert "`` a`\\|b ``" in text
    assert "<img" not in text.replace("\\<img", "")
    assert "\\| \\[x\\](y)" in text


def test_blocks_that_went_are_named_with_what_they_cost():
    report = full_report()
    text, full = printed(report), printed(report, lambda *given: render(*given, full=True))
    assert "dropped 2 of 52 blocks" in text
    assert re.search(r"block3 +4.00 k +0.01\nblock1 +1.18 M +0.031\n", text)
    assert "block1.conv" not in text
    assert "  block1.conv: lies within block1\n" in full
    assert "  block2: cannot be dropped: its input and output differ in shape\n" in full
    assert "  stage49: stays\n" in full
    page = to_markdown(report)
    assert "## Blocks\n\nDropped 2 of 52 blocks.\n" in page
    assert "| `block3` | 4.00 k | 0.01 |\n| `block1` | 1.18 M | 0.031 |" in page
    assert "| `block2` | its input and output differ in shape |" in page


def test_a_score_that_is_not_known_is_left_out():
    replayed = BlockRow("block1", True, None, 1000)
    assert grains.block_cells(replayed) == ("block1", "1.00 k", "")
    assert grains.block_cells(replace(replayed, score=2304.0)) == ("block1", "1.00 k", "2,304")


def test_an_inspection_says_which_blocks_can_go():
    text, full = printed(inspection()), printed(inspection(), lambda *given: render(*given, full=True))
    assert "can be pruned, 1 block can be dropped\n" in text
    assert "1 block can be dropped, 1 more lies within them, 1 cannot\n" in text
    assert "score" not in text
    assert "block2" not in text
    assert "block2: cannot be dropped: its input and output differ in shape" in full
    assert "## Blocks" in to_markdown(inspection())


def test_a_report_without_blocks_says_nothing_of_them():
    stays = replace(full_report(), blocks=(BlockRow("block1"),))
    for report in (stays, replace(full_report(), blocks=())):
        assert "block" not in printed(report)
        assert "Blocks" not in to_markdown(report)
        assert "block" not in summary.headline(report)


def test_zeros_are_listed_and_what_stays_dense_is_folded():
    report = full_report()
    text, full = printed(report), printed(report, lambda *given: render(*given, full=True))
    assert "50.0 % of the weights of 51 tensors are zero (2:4), 3 operators stay dense\n" in text
    assert "... and 39 more tensors: -v lists all" in text
    assert "  dense: deep1, deep2: it is depthwise: each of its few weights matters\n" in text
    assert "w49" not in text
    assert "w49" in full
    page = to_markdown(report)
    assert "| `w49` | `m49` | 2:4 | 50.0 % |" in page
    assert "| it is depthwise: each of its few weights matters | `deep1`, `deep2` |" in page
    assert "zero (" not in printed(replace(report, sparsity=Sparsity()))


def test_the_headline_names_every_grain():
    assert summary.headline(full_report()).startswith(
        "2 of 52 blocks dropped, 50 % zeros (2:4), int8 in 50 of 53 operators, 2.00x faster, -50 % MACs"
    )


def test_the_compressed_size_is_a_row_where_it_is_known():
    rows = {row.label: row for row in summary.comparison(full_report())}
    assert rows["compressed"] == summary.Row("compressed", "95.0 MB", "23.8 MB", "-75 %", 0.25)
    assert "compressed" not in {row.label for row in summary.comparison(inspection())}


def test_blocks_alone_want_a_proof():
    report = replace(full_report(), groups=(), proof=Proof())
    assert summary.wants_proof(report)
    assert not summary.wants_proof(replace(report, blocks=()))


def test_the_allocation_that_won_stands_first():
    rows = (
        AllocationRow("global", 5, 5, None),
        AllocationRow("uniform", 5, 5, 0.5),
        AllocationRow("per-mac", 5, 5, 0.25, True),
    )
    sentence = summary.allocation_sentence(Report("slim", allocations=rows))
    assert sentence.endswith("variance: per-mac 0.25, uniform 0.5, global not finite")
    assert summary.allocation_sentence(Report("slim")) is None
