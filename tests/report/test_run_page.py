"""The page of a run, from its files."""

import json

import numpy as np

from cm3jax.config import DataConfig
from cm3jax.io.experiment_json import save_experiment
from cm3jax.report.html import cell, tag
from cm3jax.report.run_page import Illustration, keep_pictures, loss_curves, write_report
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument, mark_of
from cm3jax.retrieval.pages import GONE
from cm3jax.retrieval.removed import Removed
from cm3jax.retrieval.takedown import remove
from cm3jax.train import train
from cm3jax.training import metrics
from tests.pages import require_sound
from tests.tiny import experiment, learner


def test_a_run_leaves_its_curves(tmp_path):
    config = experiment(tmp_path)
    train(learner(config))
    page = (tmp_path / "report.html").read_text()
    require_sound(page)
    assert "8 of 8" in page
    for legend in ("image", "text", "all", "image, validation", "all, validation"):
        assert f"</i>{legend}</span>" in page
    assert "gradient_norm" in page
    assert metrics.lives(tmp_path)[0]["begun"] in page
    assert "&quot;peak_lr&quot;: 0.01" in page
    assert not (tmp_path / "samples").exists()


def write_files(path, steps, **fields):
    save_experiment(path / "config.json", experiment(path))
    lines = [
        {"step": s, "loss": 9.0 / s, "seconds": 36.0 * s, "a100_hours": 0.0} | fields for s in steps
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_resumed_run_keeps_its_curves_and_lives(tmp_path):
    write_files(tmp_path, range(1, 7))
    metrics.record_life(tmp_path, 0)
    metrics.record_life(tmp_path, 4)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    (points,) = [part.split('"')[0] for part in page.split('<polyline points="')[1:]]
    assert len(points.split()) == 6
    assert "<td>0</td>" in page
    assert "<td>4</td>" in page


def test_null_is_no_point(tmp_path):
    write_files(tmp_path, [1, 2], loss_text=None, mfu=0.5, tokens_per_second=1234.5)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "</i>text</span>" not in page
    assert "50.0%" in page
    assert "1,234" in page


def test_foreign_values_in_the_log_are_left_out(tmp_path):
    write_files(tmp_path, [1, 2], seconds="long", a100_hours=None, loss_text=[3])
    (tmp_path / "lives.jsonl").write_bytes(b'{"step": 0}\n\xff\n{"st')
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "2 of 8" in page
    assert "hours of training" not in page


def test_a_run_without_steps_has_a_page(tmp_path):
    save_experiment(tmp_path / "config.json", experiment(tmp_path))
    write_report(tmp_path, [Illustration.absent("nothing <is> there.")])
    page = (tmp_path / "report.html").read_text()
    require_sound(page)
    assert "There are none: nothing &lt;is&gt; there." in page
    assert "<polyline" not in page


def test_a_document_that_was_taken_out_while_a_training_had_it_open_is_not_shown(tmp_path):
    documents = [
        BankDocument(key, np.array([7], np.int32), f"a text of {key}", True, True, "s", "l")
        for key in ("fox", "owl")
    ]
    bank = Bank.build(tmp_path / "bank", documents, np.eye(2, dtype=np.float32), "e", "v")
    shown = [cell("document", d.text, document=mark_of(d)) for d in bank.documents()]
    config = experiment(tmp_path, data=DataConfig(bank=str(tmp_path / "bank"), batch=8))
    save_experiment(tmp_path / "config.json", config)
    remove(bank, Removed(keys=("fox",)))
    write_report(tmp_path, [Illustration("Samples", tag("div", *shown))])
    page = (tmp_path / "report.html").read_text()
    assert "a text of owl" in page
    assert "a text of fox" not in page
    assert page.count(GONE) == 1


def test_pictures_are_kept_beside_the_page(tmp_path):
    picture = np.full((4, 4, 3), 9, np.uint8)
    drawn = Illustration("Samples", tag("p", "x"), {"record-3": picture})
    keep_pictures(tmp_path / "samples" / "8", [drawn])
    assert [path.name for path in tmp_path.rglob("*.png")] == ["record-3.png"]


def test_losses_are_named_after_what_they_measure():
    names = ("loss", "loss_text", "loss_document_image", "loss_valid", "loss_valid_text")
    svg = loss_curves({name: [(1, 1.0)] for name in names}, "nats")
    legends = "text, document image, all, text, validation, all, validation"
    assert f"nats over steps: {legends}" in svg
