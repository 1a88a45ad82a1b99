import base64
import io
import re

import numpy as np
import PIL.Image

from cm3jax.report.html import Html, curves, join, page, png_uri, tag
from tests.pages import require_sound


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "a < b & ", Html("<b>c</b>")) == "<p>a &lt; b &amp; <b>c</b></p>"
    assert tag("img", alt='"><script>') == '<img alt="&quot;&gt;&lt;script&gt;">'
    assert join("<", ">") == "&lt;&gt;"


def test_attributes_are_spelled_as_html_and_svg_want_them():
    written = tag("svg", class_="plot", view_box="0 0 1 1", text_anchor="end", role=None)
    assert written == '<svg class="plot" viewBox="0 0 1 1" text-anchor="end"></svg>'


def test_a_picture_travels_losslessly():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    kind, data = png_uri(image).split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(PIL.Image.open(io.BytesIO(base64.b64decode(data))), image)


def test_curves_span_the_plot_from_first_to_last_step():
    svg = curves({"text": [(0, 4.0), (100, 1.0)], "image": [(0, 2.0), (50, float("nan"))]}, "loss")
    text, image = re.findall(r'points="([^"]*)"', svg)
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in text.split())
    assert x0 < 60
    assert x1 > 600
    assert y0 < 20 < y1  # a higher loss is drawn higher up
    assert len(image.split()) == 1  # what is not a number is not drawn
    assert "nan" not in svg
    assert curves({"text": []}, "loss").count("<polyline") == 1


def test_a_validation_is_dashed_and_has_its_lines_colour():
    svg = curves({"a": [(0, 1.0)], "b": [(0, 2.0)]}, "loss", {"b": [(0, 3.0)]})
    assert re.findall('<polyline [^>]*class="([^"]*)"', svg) == [
        "line line-0",
        "line line-1",
        "line line-1 dashed",
    ]
    assert "<span>b, validation" not in svg
    assert ">b, validation</span>" in svg.replace("</i>", ">")


def test_borders_of_stages_are_where_the_curve_passes_them():
    svg = curves({"a": [(0, 1.0), (100, 1.0)]}, "loss", borders=(50, 100, 200))
    (x,) = re.findall('<line x1="([0-9.]+)"[^>]*class="border"', svg)
    assert float(x) == (44 + 608) / 2
    assert svg.count(">stage 2<") == 1
    assert "stage 3" not in svg, "a stage that has not begun"


def test_a_long_curve_has_no_more_points_than_the_plot_is_wide():
    svg = curves({"a": [(step, 1.0) for step in range(10_001)]}, "loss")
    (points,) = re.findall(r'points="([^"]*)"', svg)
    assert 300 < len(points.split()) <= 640
    assert points.split()[-1].startswith("608")  # the last step is drawn


def test_a_page_is_well_formed_and_asks_for_nothing():
    written = page("a & b", tag("p", "hello"))
    require_sound(written)
    assert "a &amp; b" in written


def test_one_point_is_seen_and_the_last_tick_is_inside():
    plot = curves({"loss": [(400, 2.0)]}, "nats")
    assert plot.count("<circle") == 1
    places = [float(x) for x in re.findall(r'<text x="([0-9.]+)" y="250"', plot)]
    assert places
    assert max(places) <= 640 - 30
    short = curves({"loss": [(1, 2.0), (2, 1.0)]}, "nats")
    assert re.findall(r'y="250" text-anchor="middle">([^<]*)<', short) == ["0", "1", "2"]


def test_values_of_nothing_but_zero_and_less_are_drawn():
    for points in ([(1, 0.0)], [(1, -2.0), (2, -3.0)], []):
        assert "<svg" in curves({"x": points}, "nats")


def test_half_a_character_stops_no_page():
    assert "a?b" in page("x", tag("p", "a\ud800b")).encode().decode()
