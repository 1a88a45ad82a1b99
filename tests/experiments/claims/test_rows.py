"""Every row on the shipped weights, with few prompts and small banks: its figures are real."""

import dataclasses
import html

import numpy as np
import pytest

from cm3jax.decode import loop
from experiments.claims import sizes
from experiments.claims.claim import Result
from experiments.claims.claims_page import write_page
from experiments.claims.harness import Bench
from launch.report import ROWS, Options, train_models, trainings
from tests.experiments.claims.test_harness import SHIPPED
from tests.pages import require_sound

ABOVE = {
    "control": ("infill.rows.with", "five_documents.each_picture"),
    "documents": ("one.docs_1", "one.docs_2", "two.docs_2", "rules.clauses.right", "kind.pair"),
    "rivals": (),
    "sizes": (),
    "masking": (),
    "sampling": ("accuracy.cfg.best_of_1",),
    "guidance": ("accuracy.cfg_1",),
    "bank_swap": ("old_emblems.old_bank", "new_emblems.new_bank"),
    "retrieval": ("recall.dropped_0", "accuracy.dropped_0"),
    "tasks": ("tuned.segmentation_iou", "tuned.story_order", "tuned.story_scenes"),
}
"""What the shipped weights do in at least half of the cases, or models of two steps."""
BELOW = {
    "control": ("infill.rows.without", "infill.cell.another", "classify.wrong_first"),
    "documents": ("one.docs_0", "two.docs_0", "two.docs_1", "kind.text"),
    "rivals": ("cm3leon.heldout.docs_1", "dalle.known.docs_0", "parti.scene.docs_0", "cm3.caption"),
    "sizes": ("cm3leon.small.heldout.docs_1", "parti.large.scene.clauses_2.docs_0"),
    "masking": ("spans.heldout.docs_1", "whole.infill"),
    "sampling": ("accuracy.cdk.best_of_1",),
    "guidance": (),
    "bank_swap": ("old_emblems.new_bank", "new_emblems.old_bank"),
    "retrieval": (),
    "tasks": ("before.editing", "before.words"),
}
"""What they never do."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Models of two steps, for rows that compare models."""
    options = Options(data=str(data), runs=str(tmp_path_factory.mktemp("runs")))
    for row in ROWS:
        few = [
            dataclasses.replace(
                experiment,
                data=dataclasses.replace(experiment.data, records=400, emblems=8),
                train=dataclasses.replace(experiment.train, steps=2),
                # Sooner compiled, and as good for two steps.
                model=dataclasses.replace(experiment.model, unroll=1),
            )
            for experiment in trainings(row, options)
        ]
        train_models(few, lambda line: None)
    return options.runs


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_measures_what_it_says(row, data, runs, tmp_path, monkeypatch):
    few = {group: (title, numbers[:2]) for group, (title, numbers) in sizes.COUNTED.items()}
    monkeypatch.setattr(sizes, "COUNTED", few)
    lines = []
    keep = tmp_path / "samples"
    bench = Bench(SHIPPED, data, keep, lines.append, seeds=2, prompts=4, emblems=8, runs=runs)
    found = row.measure(bench)
    value = {name: score.value for name, score in found.scores.items()}
    assert all(value[name] >= 0.5 for name in ABOVE[row.name])
    assert all(value[name] == 0 for name in BELOW[row.name])
    assert all(score.interval[0] <= score.interval[1] for score in found.scores.values())
    assert all(np.isfinite([*score.interval, score.value]).all() for score in found.scores.values())
    said = [line for line in lines if any(line.startswith(f"{name}: ") for name in value)]
    assert len(said) == len(value)

    Result.of(row, bench, found, 1.0).save(tmp_path / "results" / f"{row.name}.json")
    path = write_page(tmp_path / "page", (row,), tmp_path / "results")
    page = path.read_text()
    require_sound(page, path.parent)
    assert html.escape(row.headline(found.scores)) in page
    assert page.count(">✓<") + page.count(">✗<") == len(row.targets)

    # What was drawn is kept, so that a killed measurement goes on.
    monkeypatch.setattr(loop, "plan_groups", lambda requests, *rest: 1 / 0 if requests else ())
    assert row.measure(bench) == found
