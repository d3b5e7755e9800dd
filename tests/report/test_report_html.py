import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_samples import full_report, inspection

from onnxprune.errors import UsageError
from onnxprune.report.charts import latency_svg
from onnxprune.report.html import to_html
from onnxprune.report.schema import (
    BlockRow,
    GroupRow,
    LeftNode,
    NodeRow,
    Recovery,
    Report,
    Side,
    SparseTensor,
    Sparsity,
)

VOID = {"meta", "br", "use", "path"}


class Page(HTMLParser):
    """Tags, ids and text of a page; notes tags that do not close."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.tags, self.text, self.errors = [], [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page():
    return to_html(full_report())


def test_the_page_needs_nothing_from_outside(page):
    assert "http://" not in page
    assert "https://" not in page
    assert "//" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert {tag for tag, _ in Page(page).tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "default-src 'none'" in page


def test_the_page_is_well_formed(page):
    for text in (page, to_html(inspection()), to_html(Report("compare", after=Side()))):
        parsed = Page(text)
        assert parsed.errors == []
        assert parsed.open == []
        assert len(parsed.ids) == len(set(parsed.ids))
        labels = {attrs["aria-labelledby"] for _, attrs in parsed.tags if "aria-labelledby" in attrs}
        assert labels <= set(parsed.ids)
        assert [tag for tag, _ in parsed.tags].count("h1") == 1


def test_the_page_shows_the_figures(page):
    text = " ".join("".join(Page(page).text).replace("\N{NO-BREAK SPACE}", " ").split())
    for part in (
        "2.00\N{MULTIPLICATION SIGN} faster",
        "25.6 M → 12.8 M",
        "4.09 GMAC → 2.04 GMAC",
        "92.1 % → 91.9 %",
        "1,616 of 3,264 prunable units were removed (50 %)",
        "11 more",
        "the other 34 nodes",
        "2 no channel rule for Odd",
        "Dropped 2 of 52 blocks.",
        "52 others",
        "block1.conv lies within block1",
        "50.0 % of the weights of 51 tensors are zero (2:4), 3 operators stay dense.",
        "2 dense: it is depthwise: each of its few weights matters",
        "differ by at most 2.1e-06 of the largest output",
        "CPUExecutionProvider",
        "a" * 64,
        "free dimension 'batch' was set to 1",
    ):
        assert part in text


def test_a_fall_of_accuracy_is_a_banner():
    report = full_report()
    report = replace(report, after=replace(report.after, metrics={"top1": 0.34}), recovery=Recovery())
    page = to_html(report)
    assert 'class="notice bad" role="alert"' in page
    assert "Top-1 accuracy fell from 92.1 % to 34.0 %: no repair was applied." in page


def test_names_are_text_and_never_markup():
    evil = "<script>alert('x')</script>\"><img src=x onerror=y>$\\frac{"
    report = replace(
        full_report(),
        command=evil,
        options={evil: evil},
        before=replace(full_report().before, path=evil, sha256=evil, metrics={evil: 0.5}),
        groups=(GroupRow(evil, 4, 2), GroupRow(evil, 4, frozen=evil)),
        blocks=(BlockRow(evil, True), BlockRow(evil + "2", False, evil), BlockRow(evil + "3", False, None, 1, evil)),
        sparsity=Sparsity(evil, 0.5, (SparseTensor(evil, 0.5, evil, evil),), (LeftNode(evil, evil),)),
        nodes=(NodeRow(evil, evil, 5, 5),),
        warnings=(evil,),
        seconds={evil: 1.0},
    )
    page = to_html(report)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 9
    assert Page(page).errors == []


def test_an_inspection_has_no_after():
    text = to_html(inspection())
    assert "64 units in 1 channel group can be pruned" in text
    assert "Before and after" not in text
    assert 'class="is"' not in text
    assert 'id="proof"' not in text


def test_the_same_report_gives_the_same_page(page):
    assert to_html(full_report()) == page


def test_light_and_dark_and_narrow(page):
    assert "prefers-color-scheme: dark" in page
    assert "@media (max-width: 720px)" in page
    assert 'name="viewport"' in page


def test_the_drawing_takes_its_colours_from_the_page():
    drawing = latency_svg(full_report().latency_samples)
    assert "var(--before)" in drawing
    assert "var(--after)" in drawing
    assert re.findall(r"#[0-9a-fA-F]{6}\b", drawing) == []
    assert ">before</text>" in drawing


@pytest.mark.parametrize("samples", [{}, {"before": [1.0]}, {"before": [float("nan"), 1.0]}, {"other": [1.0, 2.0]}])
def test_too_few_times_give_no_drawing(samples):
    assert latency_svg(samples) is None


def test_equal_times_and_one_side_can_be_drawn():
    assert "<svg" in latency_svg({"after": [2.0, 2.0, 2.0]})
    assert "<svg" in latency_svg({"before": [0.0, 0.0], "after": [1e-6, 1e-6]})


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_package_is_said_with_the_way_out(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r'install "onnxprune\[report\]" to write HTML reports'):
        full_report().save(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
