"""A page as HTML: what reads without script, what plotly gets, and where marks stand in the static pictures."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import pytest

from bft_ray.page.html import to_html
from bft_ray.page.live import to_json
from bft_ray.page.model import Axis, Code, Figure, Finding, Marks, Number, Page, Plot, Section, Span, Table
from bft_ray.page.svg import to_svg, wrapped
from bft_ray.page.ticks import scale_of

FOREST = Figure(
    "gains",
    "Gains",
    "Gain of each arm: a +0.05.",
    Axis("gain"),
    Axis(names=["a <b>", "the default"]),
    [
        Marks("undetectable", [0.0], [0], tone="light", low=[-0.02], high=[0.02], is_bar=True),
        Marks("candidate", [0.05], [0], texts=["a <b>: +0.05"], low=[0.01], high=[0.09]),
        Marks("default", [0.0], [1], shape="diamond", tone="best"),
    ],
    rule=0.0,
)
CURVES = Figure(
    "curves",
    "Curves",
    "Two curves.",
    Axis("steps", is_log=True),
    Axis("value"),
    [Marks("trial", [1, 10, math.nan, 1, 100], [0.1, 0.2, math.nan, 0.3, 0.4], stroke="line", texts=["p"] * 5)],
)


def svg(figure: Figure) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(figure).replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def test_marks_stand_where_their_numbers_are():
    root = svg(FOREST)
    assert root.get("aria-label") == FOREST.alt and root.findtext("title") == "Gains"
    words = {text.text: (float(text.get("x")), float(text.get("y"))) for text in root.iter("text")}
    zero, tick = words["0"][0], words["0.04"][0]
    per = (tick - zero) / 0.04
    bar = next(one for one in root.iter("rect") if float(one.get("height")) > 9)
    assert float(bar.get("x")) == pytest.approx(zero - 0.02 * per, abs=0.2)
    assert float(bar.get("width")) == pytest.approx(0.04 * per, abs=0.2)
    dots = [one for one in root.iter("circle")]
    assert float(dots[-1].get("cx")) == pytest.approx(zero + 0.05 * per, abs=0.2)
    line = next(one.get("d") for one in root.iter("path") if one.get("stroke-width") == "2")
    ends = [float(number) for number in re.findall(r"[MH]([\d.]+)", line)]
    assert ends == pytest.approx([zero + 0.01 * per, zero + 0.09 * per], abs=0.2)
    assert words["a <b>"][1] < words["the default"][1]  # the first of a list is on top
    assert all(0 <= x <= 720 for x, _ in words.values())


def test_a_gap_parts_two_lines_and_a_log_axis_is_one():
    root = svg(CURVES)
    line = next(one.get("d") for one in root.iter("path") if one.get("fill") == "none")
    assert line.count("M") == 2 and line.count("L") == 2
    xs = [float(number) for number in re.findall(r"[ML]([\d.]+)", line)]
    assert xs[1] - xs[0] == pytest.approx((xs[3] - xs[2]) / 2, abs=0.2)  # a decade, and two
    assert len(root.findall(".//circle")) == 5  # four points and one in the legend


@pytest.mark.parametrize(
    ("values", "is_log", "ticks"),
    [
        ([0, 10], False, (0, 2, 4, 6, 8, 10)),
        ([0.4661, 0.4739], False, (0.466, 0.468, 0.47, 0.472, 0.474)),
        ([16, 2048], True, (30, 100, 300, 1000)),
        ([0.01, 1.0], True, (0.01, 0.1, 1.0)),
        ([5, 5], False, (4.8, 4.9, 5.0, 5.1, 5.2)),
    ],
)
def test_ticks_are_round_numbers(values, is_log, ticks):
    scale = scale_of(values, is_log)
    assert scale.ticks == pytest.approx(ticks)
    assert scale.low < min(values) and max(values) < scale.high
    assert 0 < scale.at(values[0]) <= scale.at(values[-1]) < 1


def test_what_plotly_gets_is_what_is_drawn():
    plot = Plot("other", "O", "o", "text", {"data": [{"type": "parcoords"}], "layout": {}})
    text = to_json([FOREST, CURVES, plot])
    assert "<" not in text and "NaN" not in text  # it stands in a page, and is JSON
    tree = json.loads(text)
    bar, point, _ = tree["gains"]["data"]
    assert (bar["base"], bar["x"]) == ([-0.02], [0.04])
    assert point["x"] == [0.05] and point["error_x"]["array"] == pytest.approx([0.04])
    assert point["error_x"]["arrayminus"] == pytest.approx([0.04]) and point["text"] == ["a &lt;b&gt;: +0.05"]
    assert tree["gains"]["layout"]["yaxis"]["ticktext"] == ["a &lt;b&gt;", "the default"]
    (curve,) = tree["curves"]["data"]
    assert curve["x"] == [1, 10, None, 1, 100] and tree["curves"]["layout"]["xaxis"]["type"] == "log"
    assert tree["other"] == plot.tree


def test_the_page_needs_nothing_beside_it_and_escapes_all_of_its_text():
    page = Page(
        "a <title>",
        "above `it`",
        "Which <b>?",
        "**This one**: `w64 <x>`.",
        [("gain", Number(0.0123456, "+0.0123"), "a word")],
        [
            Section(
                "one",
                "One & two",
                [
                    "A sentence.",
                    ["first", "second `x`"],
                    Table(["arm", "span"], [["a", Span(Number(-1.0, "-1"), Number(2.0, "2"))]], strong=[0]),
                    FOREST,
                    Finding("Sign", "what", "do <this>"),
                    Code("a < b", "config", is_open=False),
                ],
            )
        ],
    )
    html = to_html(page)
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert "http://" not in outside.replace("http://www.w3.org/2000/svg", "") and "https://" not in outside
    assert not re.search(r"<(link|img|iframe)\b|\bsrc=", outside)
    for text in (
        "<title>a &lt;title&gt;</title>",
        '<p class="answer"><strong>This one</strong>: <code>w64 &lt;x&gt;</code>.</p>',
        '<data value="0.0123456">+0.0123</data>',
        '[<data value="-1.0">-1</data>, <data value="2.0">2</data>]',
        "do &lt;this&gt;",
        "<pre>a &lt; b</pre>",
        '<a href="#one">One &amp; two</a>',
        'class="live" data-figure="gains" role="img" aria-label="Gain of each arm: a +0.05."',
    ):
        assert text in outside, text
    assert len(html) < 2.5e6 and html.count("<script>") == 1


def test_names_are_wrapped_between_words():
    assert wrapped("bft_inverse w64 e0.359 c4 lr0.003", 20) == ["bft_inverse w64", "e0.359 c4 lr0.003"]
    assert wrapped("x" * 50, 20) == ["x" * 50] and wrapped("") == [""]
