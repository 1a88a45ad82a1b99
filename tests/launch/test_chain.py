import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cm3jax.config import DataConfig
from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import PromptSet, Score, scores_from_json, scores_to_json, stamp
from cm3jax.io.files import write_json
from launch import chain
from launch.chain import Options, members, require_same_choices
from launch.chain_report import write_chain_report
from tests.launch import waves

TINY = ["--side", "32", "--width", "32", "--scale", "0.004", "--prompts", "6"]


def test_a_scale_shortens_training_and_nothing_else():
    whole, short = members(Options("photos")), members(Options("photos", scale=0.01))
    for part, member in short.items():
        assert member.train.steps == max(1, round(whole[part].train.steps * 0.01))
        assert max(member.train.log_every, member.train.validate_every) <= member.train.steps
        assert (member.model, member.vocab) == (whole[part].model, whole[part].vocab)
        assert member.data.batch % member.mesh.data == 0
    assert short["decoder"].data.bank == "runs/mine/data/bank"


def test_a_folder_keeps_one_chain(tmp_path):
    out = str(tmp_path / "mine")
    require_same_choices(Options("photos", out, splits=(("new", "bank"),)))
    require_same_choices(Options("photos", out, splits=(("new", "bank"),), prompts=5))
    with pytest.raises(UserError, match=r"other choices \(splits: .*; give those again"):
        require_same_choices(Options("photos", out))
    small = dataclasses.replace(chain.SMALL, side=32)
    with pytest.raises(UserError, match=r"other choices \(side: 64 → 32\); give those"):
        require_same_choices(Options("photos", out, splits=(("new", "bank"),), choices=small))
    with pytest.raises(UserError, match=r"source: .*photos → .*others"):
        require_same_choices(Options("others", out, splits=(("new", "bank"),)))


def test_a_source_is_one_however_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = ("photos", "photos/", "./photos", str(tmp_path / "photos"))
    assert {members(Options(name))["clip"].data.source for name in typed} == {typed[-1]}
    others = ("tfds:coco_captions#train", "gs://mine/photos", "emoji")
    assert [members(Options(name))["clip"].data.source for name in others] == list(others)


def test_all_records_of_a_folder_are_read_and_no_more_than_usual_of_a_drawn_source():
    assert members(Options("photos"))["vqgan"].data.records == 10_000_000
    assert members(Options("emblems"))["vqgan"].data.records == DataConfig().records


def test_going_on_with_changes_is_no_other_choice(tmp_path):
    require_same_choices(Options("photos", str(tmp_path)))
    require_same_choices(Options("photos", str(tmp_path), resume_with_changes=True))


@pytest.mark.parametrize("name", ["report.html", "config.json"])
def test_a_page_of_something_else_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} does not belong to a chain"):
        require_same_choices(Options("photos", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_scores_of_another_bank_or_of_other_prompts_do_not_count(tmp_path):
    small = dataclasses.replace(chain.SMALL, side=32, width=32)
    counts = {"train": 9, "validation": 3, "bank": 0}
    six, seven = (
        chain.stages(Options("photos", str(tmp_path), prompts=n, choices=small), counts, 1e9)[-1]
        for n in (6, 7)
    )
    bank = tmp_path / "data/bank/manifest.json"
    write_json(bank, {"fingerprint": "old"})
    write_json(tmp_path / "results/heldout.json", {})
    assert not six.done()  # nothing says what was asked
    write_json(tmp_path / "results/asked.json", {"bank": "old", "prompts": 6})
    assert six.done()
    assert not seven.done()
    corpus = tmp_path / "data/corpus/validation/manifest.json"
    write_json(corpus, {"source_state": "of an edited caption"})
    assert not six.done()
    corpus.unlink()
    assert six.done()
    write_json(bank, {"fingerprint": "new"})
    assert not six.done()


def test_a_training_took_as_long_as_all_its_lives(tmp_path):
    write_json(tmp_path / "results/seconds.json", {"train vqgan": 77.0, "corpus": 33.0})
    (tmp_path / "vqgan").mkdir()
    (tmp_path / "vqgan/metrics.jsonl").write_text('{"step": 9, "loss": 1.0, "seconds": 7200.0}\n')
    page = write_chain_report(tmp_path, "photos", members(Options("photos", str(tmp_path))))
    text = page.read_text()
    assert "2.0 hours" in text
    assert "33 s" in text
    assert "77 s" not in text


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    waves.write(tmp_path / "photos", 60)
    chain.command(["photos", "--out", "mine", "--splits", "new", "bank", "--dry-run", *TINY])
    said = capsys.readouterr().out
    assert "photos: 45 records for training, 5 held back, 250 only in the bank" in said
    for number, name in enumerate(["train text_tokenizer", "train vqgan", "train clip"], 1):
        assert f"[{number}/6] {name}: about " in said
    assert "in all at the speed measured just now" in said
    assert not Path("mine").exists()


def test_a_dry_run_notices_missing_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    waves.write(tmp_path / "photos", 60)
    (tmp_path / "photos/captions.jsonl").unlink()
    (tmp_path / "photos/new").rename(tmp_path / "photos/2")  # says nothing of its images
    with pytest.raises(UserError, match="no record of the source has a caption"):
        chain.command(["photos", "--out", "mine", "--dry-run", *TINY])
    (tmp_path / "photos/000.txt").write_text("amber rings")
    with pytest.raises(UserError, match=r"records can't be read.* it has no caption"):
        chain.command(["photos", "--out", "mine", "--dry-run", *TINY])
    assert not Path("mine").exists()


def test_folders_without_pictures_raise_user_error(tmp_path):
    with pytest.raises(UserError, match=r"captions\.jsonl"):
        chain.command([str(tmp_path), "--out", str(tmp_path / "mine")])
    with pytest.raises(UserError, match="none of 32, 64, 128 and 256"):
        chain.command([str(tmp_path), "--side", "48"])
    assert not (tmp_path / "mine").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with `photos` and the chain `mine` on them."""
    folder = tmp_path_factory.mktemp("chain")
    waves.write(folder / "photos")
    return folder


def launch(*arguments: str | Path) -> str:
    """Run a command on one device; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(folder: Path) -> str:
    given = (folder / "photos", "--out", folder / "mine", "--splits", "new", "bank")
    return launch("launch.chain", *given, *TINY)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_hundred_pictures_from_elsewhere(trained):
    said = run(trained)
    # Every 50th of 450 images, the first of them with five captions.
    assert "677 records for training, 13 held back, 50 only in the bank" in said
    assert "left out 10 of 677 records: 007.png" in said  # broken files end nothing
    for stage in range(1, 7):
        assert f"[{stage}/6]" in said
    scores = scores_from_json(json.loads((trained / "mine/results/heldout.json").read_text()))
    for name in ("hit_1.text", "hit_10.image", "identified.docs_2", "copied.docs_1"):
        assert 0 <= scores[name].value <= 1
        assert 0 <= scores[name].chance < 1
    for name in ("none", "retrieved", "right", "wrong"):
        assert 0 < scores[f"nats.{name}"].value < np.log(1024)  # a little was learnt
    for name in ("docs_0", "docs_1", "docs_2"):
        assert scores[f"psnr.{name}"].value <= scores["psnr.reconstruction"].value + 3
        assert scores[f"psnr.{name}"].protocol.retrieved == int(name[-1])
    assert scores["identified.reconstruction"].value == 1
    page = (trained / "mine/report.html").read_text()
    assert "results/heldout.html" in page
    assert "partner found by text" in page
    for name in {name.split(".")[0] for name in scores}:
        assert f"<th>{name}</th>" in page
    assert (trained / "mine/results/heldout.html").read_text().count("data:image/png") > 10

    before = {p: p.stat().st_mtime_ns for p in (trained / "mine").rglob("checkpoints/*/*")}
    assert run(trained).count("reusing") == 6
    after = {p: p.stat().st_mtime_ns for p in (trained / "mine").rglob("checkpoints/*/*")}
    assert after == before

    waves.write(trained / "others", 60, seed=6)
    whose = ("--run", trained / "mine/decoder", "--source", trained / "others")
    said = launch("launch.evaluate", "heldout", *whose, "--documents", "0", "--count", "5")
    assert "identified.docs_0: " in said
    assert "identified.docs_1" not in said
    assert "warning" not in said  # none of the others' images is in the bank


@pytest.mark.parametrize("scale", ["nan", "inf", "0", "-1", "1e300"])
def test_a_malformed_scale_raises_user_error(tmp_path, scale):
    with pytest.raises(UserError, match="must be positive, and at most 100000"):
        chain.command([str(tmp_path), "--scale", scale])


@pytest.mark.parametrize("option", ["--codebook", "--pieces"])
def test_more_ids_than_32_bits_count_raise_user_error(tmp_path, option):
    argv = [str(tmp_path), "--dry-run", option, str(10**12)]
    with pytest.raises(UserError, match="=1000000000000 must be at most"):
        chain.command(argv)


def test_the_report_says_what_the_names_of_its_scores_mean(tmp_path):
    protocol = stamp(PromptSet("captions", "held out", "0"), "none", "0")
    names = ("hit_2.text", "nats.wrong", "psnr.reconstruction", "identified.docs_0")
    scores = {name: Score.mean([0.5], protocol) for name in names}
    write_json(tmp_path / "results/heldout.json", scores_to_json(scores))
    (tmp_path / "vqgan").mkdir()
    (tmp_path / "vqgan/metrics.jsonl").write_text(
        '{"step": 9, "loss_valid": 0.5, "psnr_valid": 21.5}\n'
    )
    made = members(Options("photos", str(tmp_path)))
    page = write_chain_report(tmp_path, "photos", made).read_text()
    rows = dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td>", page))
    expected = ("hit_2", "nats", "psnr", "identified", ".reconstruction", ".docs")
    assert {*expected} <= rows.keys()
    assert "copied" not in rows
    assert "PSNR in dB 21.500" in page


def test_a_damaged_log_stops_no_report_of_a_chain(tmp_path):
    for part, line in {
        "vqgan": '"seconds": "x"',
        "clip": '"loss_valid": [1], "seconds": {}',
    }.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "metrics.jsonl").write_text(f'{{"step": 9, {line}}}\n')
    write_chain_report(tmp_path, "photos", members(Options("photos", str(tmp_path))))
