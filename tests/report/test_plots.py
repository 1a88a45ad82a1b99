import re

import pytest

from cm3jax.report.html import page
from cm3jax.report.plots import Plot, Point, share_mark
from tests.pages import require_sound

PLOT = Plot(
    name="samples",
    title="Best of several",
    x="samples",
    y="accuracy",
    series={
        "a < b": (Point(1, 0.5, (0.4, 0.6)), Point(16, 1.0, (0.9, 1.0))),
        "b": (Point(4, 0.25, (0.2, 0.3)),),
    },
    log_x=True,
)


def numbers(name: str, svg: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<circle[^>]* {name}="([^"]*)"', svg)]


def test_points_are_where_their_values_are():
    svg = PLOT.svg()
    first, last, middle = numbers("cx", svg)
    assert first < 60
    assert last > 600
    assert abs(middle - (first + last) / 2) < 1  # 4 lies between 1 and 16 on a logarithmic axis
    low, high, lowest = numbers("cy", svg)
    assert high < low < lowest  # higher values are drawn higher up
    assert svg.count("<polyline") == 2
    require_sound(page("plot", svg))


def test_an_interval_is_drawn_around_its_point():
    bar = re.search(r'<line x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', PLOT.svg())
    low, high = map(float, bar.groups())
    assert high < numbers("cy", PLOT.svg())[0] < low


def test_an_interval_that_reaches_0_ends_where_a_logarithmic_axis_does():
    points = (Point(1, 2.0, (0.0, 4.0)), Point(2, 64.0, (32.0, 128.0)))
    svg = Plot("p", "p", "hours", "FID", {"a": points}, log_y=True).svg()
    bar = re.search(r'<line x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', svg)
    assert float(bar[1]) == max(numbers("cy", svg))  # 2 is the least value that has a logarithm


def test_axes_have_round_ticks():
    written = re.findall(r"<text[^>]*>([^<]*)</text>", PLOT.svg())
    assert {"1", "2", "4", "8", "16", "0.2", "0.8"} <= set(written)
    decades = Plot(
        "p", "p", "hours", "FID", {"a": (Point(1, 1.0, (1.0, 1.0)), Point(1e4, 9.0, (9.0, 9.0)))}
    )
    both = Plot(**vars(decades) | {"log_x": True, "log_y": True})
    assert {"1", "10", "100", "1,000", "10,000", "8"} <= set(
        re.findall(r"<text[^>]*>([^<]*)</text>", both.svg())
    )


def test_the_table_has_every_point():
    lines = PLOT.table().splitlines()
    assert lines[0] == "series,samples,accuracy,low,high"
    assert lines[1:] == ["a < b,1,0.5,0.4,0.6", "a < b,16,1.0,0.9,1.0", "b,4,0.25,0.2,0.3"]


def test_a_share_is_marked_inside_its_interval_and_next_to_chance():
    svg = share_mark(0.5, (0.25, 0.75), 0.1)
    (middle,) = numbers("cx", svg)
    lines = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', svg)
    (start, end), (low, high), (chance, _) = (map(float, line) for line in lines)
    assert (low - start) / (end - start) == pytest.approx(0.25)
    assert (high - start) / (end - start) == pytest.approx(0.75)
    assert (chance - start) / (end - start) == pytest.approx(0.1)
    assert middle == pytest.approx((start + end) / 2)
    assert "50.0%, 95 % interval 25.0% to 75.0%" in svg
    require_sound(page("share", svg))
