import dataclasses

import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.evaluate.results import Cell, Figure
from experiments.claims.claim import Measured, Result, Row, Table, Target
from experiments.claims.claims_page import claims_page, verdict, write_page
from tests.evaluate.test_protocol import score
from tests.pages import require_sound
from tests.report.test_plots import PLOT

ROW = Row(
    name="flags",
    title="Flags <on> the moon",
    claim="The flag is the retrieved one.",
    source="a paper, section 2",
    how="Emblems are drawn.",
    seconds=600,
    measure=lambda bench: MEASURED,
    headline=lambda scores: f"{scores['emblem.docs_2'].value:.1%} right",
    targets=(
        Target("at least 80 %", lambda scores: scores["emblem.docs_2"].value >= 0.8),
        Target("without documents none", lambda scores: scores["emblem.docs_0"].value == 0),
    ),
    remark="The remark stands here.",
)
MEASURED = Measured(
    scores={"emblem.docs_0": score(0, retrieved=0), "emblem.docs_2": score(186)},
    plots=(PLOT,),
    tables=(Table("Table 1", ("documents", "FID"), (("0", "10.8"), ("2", "4.9"))),),
    figures=(
        Figure("Drawn", "a <zorb>", (Cell.of("2", np.zeros((8, 8, 3), np.uint8), correct=True),)),
    ),
)
RESULT = Result(
    measured=MEASURED,
    command=ROW.command,
    hardware="two cores",
    seconds=90.0,
    versions={"jax": "0.10"},
    weights={"decoder": "abc"},
)


def test_a_result_survives_its_file(tmp_path):
    RESULT.save(tmp_path / "flags.json")
    assert Result.load(tmp_path / "flags.json") == RESULT


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"measured": 3}', '{"measured": {}}'])
def test_a_damaged_file_raises_user_error(content, tmp_path):
    (tmp_path / "flags.json").write_text(content)
    with pytest.raises(UserError, match=r"flags\.json"):
        Result.load(tmp_path / "flags.json")


def test_a_claim_is_reproduced_whole_in_part_or_not():
    assert verdict(ROW, None) == "open"
    assert verdict(ROW, RESULT) == "yes"
    scores = {"emblem.docs_0": score(9, retrieved=0), "emblem.docs_2": score(186)}
    other = dataclasses.replace(RESULT, measured=Measured(scores))
    assert verdict(ROW, other) == "in part"
    scores = scores | {"emblem.docs_2": score(1)}
    assert verdict(ROW, dataclasses.replace(RESULT, measured=Measured(scores))) == "no"


def test_scores_are_unfolded_where_nothing_else_is_drawn():
    drawn = claims_page([ROW], {"flags": RESULT})
    assert "<summary>Every score</summary>" in drawn
    bare = dataclasses.replace(RESULT, measured=dataclasses.replace(MEASURED, plots=()))
    page = claims_page([ROW], {"flags": bare})
    assert "<summary>Every score</summary>" not in page
    assert 'aria-label="93.0%, 95 % interval' in page


def test_the_page_shows_a_row_with_the_data_behind_it(tmp_path):
    RESULT.save(tmp_path / "results" / "flags.json")
    path = write_page(tmp_path / "page", (ROW,), tmp_path / "results")
    page = path.read_text()
    require_sound(page, path.parent)
    for said in (
        "Flags &lt;on&gt; the moon",
        "The flag is the retrieved one.",
        "93.0% right",
        "The remark stands here.",
        "zero-shot, 2 retrieved",
        "1.5 minutes",
        "two cores",
        ROW.command,
    ):
        assert said in page
    assert page.count("✓ right") == 1
    assert page.count(">✓<") == 2
    assert (path.parent / "data/flags-samples.csv").read_text() == PLOT.table()
    assert Result.load(path.parent / "data/flags.json") == RESULT


def test_a_row_that_was_not_measured_is_open():
    page = claims_page((ROW,), {})
    require_sound(page)
    assert "open" in page
    assert "about 10 minutes" in page
    assert page.count(ROW.command) == 2
