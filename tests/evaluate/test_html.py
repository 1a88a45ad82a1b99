import base64
import html.parser
import io
import re

import numpy as np
import PIL.Image

from cm3jax.evaluate.html import Html, curves, join, page, png_uri, tag


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


def test_a_page_is_well_formed_and_asks_for_nothing():
    written = page("a & b", tag("p", "hello"))
    stack = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, name, attributes):
            if name not in {"img", "meta", "link", "br"}:
                stack.append(name)
            assert not [v for k, v in attributes if k in ("src", "href") and "data:" not in v]

        def handle_endtag(self, name):
            assert stack.pop() == name

    Checker().feed(written)
    assert stack == []
    assert "a &amp; b" in written
    assert "url(" not in written
    assert "http" not in written
