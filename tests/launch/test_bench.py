"""The bench: our side alone on a bare machine, and its weights under transformers' names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cm3jax.errors import UserError
from cm3jax.report import html
from launch import rivals
from launch.bench import (
    accelerator,
    command,
    data,
    quantised,
    retrieval,
    scaling,
    speculate,
    targets,
)
from launch.bench.model import random_weights
from launch.bench.tables import require_results
from launch.bench.train import make_learner

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("train", "--layers", "2", "--width", "128", "--vocab", "9800"),
    *("--length", "32", "--batch", "2", "--steps", "2"),
)
BARE = """
import sys
absent = {absent!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in absent else find_spec(name, *rest)
from launch.bench.command import run
run({argv!r})
"""
ABSENT = {
    *("torch", "transformers", "jaxtyping", "beartype", "sentencepiece", "safetensors", "tyro"),
    *("grain", "array_record", "tensorflow_datasets", "scann", "PIL", "tensorboard"),
}


@pytest.mark.slow  # a process with jax; what it measures is tested below
def test_a_machine_with_little_more_than_jax_measures_our_side():
    answer = subprocess.run(
        [sys.executable, "-c", BARE.format(absent=ABSENT, argv=list(SMALL))],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert answer.returncode == 0, answer.stderr
    figures = json.loads(answer.stdout)
    assert figures["torch_left_out_because"] == "torch is not installed"
    ours = figures["ours"]
    assert ours["first_loss"] == pytest.approx(np.log(9800), rel=0.02)
    assert ours["last_loss"] < ours["first_loss"]
    assert ours["mfu"] is None
    assert 0 < ours["share_of_matrix_rate"] < 2
    # Worked by hand: 2 layers of 4 D^2 and 3 D F (F = 384) and a head of V D; attention 12 N D L.
    per_token = 6 * (2 * (4 * 128**2 + 3 * 128 * 384) + 9800 * 128) + 12 * 2 * 128 * 32
    assert figures["flops_per_step"] == 2 * 32 * per_token


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--experiment", "cm3leon_35m"], "no experiment 'cm3leon_35m'.*cm3leon_350m"),
        (["train", "--steps", "0"], "--steps: 0 must be at least 1"),
        (["train", "--steps", "ten"], "--steps: invalid integer value: 'ten'"),
        (["train", "--vocab", "100"], "--vocab 100 must be above"),
        (["train", "--width", "100"], "--width 100 a multiple of 64"),
        (
            ["train", "--experiment", "cm3", "--layers", "2", "--unroll", "2"],
            "cm3 has sizes of its own; leave out --layers and --unroll",
        ),
        (["encode"], "invalid choice: 'encode'"),
        (["data", "--width", "128"], "unrecognized arguments: --width 128"),
        (["decode", "--samples", "0"], "--samples: 0 must be at least 1"),
        (["retrieval", "--recall", "2"], "--recall: 2.0 must be above 0, at most 1"),
        (["retrieval", "--recall", "much"], "--recall: invalid share value: 'much'"),
        (["retrieval", "--documents", "5"], "--documents 5 are too few; give at least 1000"),
        (["scaling", "--page", "no/such/x.html"], "no/such is not a folder"),
        (
            ["train", "--experiment", "cm3leon_7b", "--compile-torch"],
            "--compile-torch can't be measured: an experiment's model has no counterpart",
        ),
    ],
)
def test_impossible_measurements_raise_user_error(argv, message):
    with pytest.raises(UserError, match=message):
        command.run(argv)


def test_weights_go_to_transformers_transposed():
    weights = random_weights(make_learner(command.make_parser().parse_args(SMALL)))
    state = rivals.state_dict(weights, 128)
    assert sum(a.size for a in state.values()) == sum(a.size for a in jax.tree.leaves(weights))
    query = weights["layers"]["query"]["kernel"][1]  # [D H A]
    assert state["model.layers.1.self_attn.q_proj.weight"][64 + 5, 7] == query[7, 1, 5]
    out = weights["layers"]["out"]["kernel"][0]  # [H A D]
    assert state["model.layers.0.self_attn.o_proj.weight"][7, 64 + 5] == out[1, 5, 7]
    gate = weights["layers"]["feed_forward"]["gate"]["kernel"][0]
    np.testing.assert_array_equal(state["model.layers.0.mlp.gate_proj.weight"], gate.T)


def test_decoding_is_timed_with_or_without_transformers(capsys):
    """With torch, which no environment of tests has to have, both sides give the same ids."""
    size = ("--layers", "2", "--width", "128", "--vocab", "9800", "--prompt", "20", "--new", "9")
    command.run(["decode", *size, "--batch", "2", "--samples", "2"])
    figures = json.loads(capsys.readouterr().out)
    ours = figures["ours"]
    assert ours["tokens_per_second"] == pytest.approx(2 * 2 * 9 / ours["seconds"])
    assert ours["decode_tokens_per_second"] > 0
    # So small a model stays in the processor's cache: its share of the memory's rate says nothing.
    share = ours["decode_gigabytes_per_second"] / ours["copy_gigabytes_per_second"]
    assert ours["share_of_copy_rate"] == pytest.approx(share)
    if "torch_left_out_because" in figures:
        assert figures["torch_left_out_because"] == rivals.missing() != ""
    else:
        for name in ("torch_static", "torch_growing", "torch_repeated"):
            assert figures[name]["same_ids"] == 1


@pytest.mark.slow  # decoding is timed above
def test_an_experiment_is_decoded_without_a_rival(capsys):
    """What an accelerator runs at full size, `--experiment cm3leon_7b --guided`."""
    size = ("--batch", "1", "--guided", "--prompt", "20", "--new", "16")
    command.run(["decode", "--experiment", "miniature/decoder", *size])
    figures = json.loads(capsys.readouterr().out)
    assert (figures["streams"], figures["torch"]) == (2, None)
    assert figures["ours"]["decode_tokens_per_second"] > 0


def bare(argv):
    """The bench on a machine with little more than jax."""
    return subprocess.run(
        [sys.executable, "-c", BARE.format(absent=ABSENT | {"qwix"}, argv=argv)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_an_accelerator_s_parts_are_skipped_where_there_is_no_time(tmp_path, capsys):
    command.run(["accelerator", "--out", str(tmp_path), "--minutes", "0"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "accelerator.json").read_text())
    assert found["parts"].keys() == accelerator.PARTS.keys()
    assert all("it takes" in part["skipped"] for part in found["parts"].values())
    lines = (tmp_path / "accelerator.md").read_text()
    assert "| training, whole rows: MFU | open |" in lines


@pytest.mark.slow
def test_accelerators_are_checked_on_a_bare_machine_part_by_part(tmp_path):
    """A CPU's dry run: what there was no time for is done by the next run only."""
    answer = bare(["accelerator", "--out", str(tmp_path), "--minutes", "0"])
    assert answer.returncode == 0, answer.stderr
    kept = {"kept": 1, "seconds": 2.0}
    found = json.loads(answer.stdout)
    found["parts"]["decode_batches"] = kept
    (tmp_path / "accelerator.json").write_text(json.dumps(found))
    answer = bare(["accelerator", "--out", str(tmp_path)])
    assert answer.returncode == 0, answer.stderr
    parts = json.loads(answer.stdout)["parts"]
    assert parts == json.loads((tmp_path / "accelerator.json").read_text())["parts"]
    assert parts["decode_batches"] == kept
    for name in ("splash", "triton"):
        assert parts["kernels"][name]["difference"] < 0.02  # bfloat16
        assert parts["kernels"][name]["gradient_difference"] < 0.02
    for name in ("train_whole", "train_packed"):
        assert parts[name]["kernel"] == "xla"
        assert parts[name]["losses"][1] < parts[name]["losses"][0]
    assert parts["train_int8"]["skipped"].startswith("model.quantised=int8 needs the package qwix")
    for documents in ("0_documents", "2_documents"):
        assert parts["decode_documents"][documents]["seconds_per_picture"] > 0
    lines = (tmp_path / "accelerator.md").read_text()
    assert "| training, whole rows: MFU | open |" in lines
    assert "train_int8 skipped: model.quantised=int8" in lines


def test_results_of_another_machine_stay_as_they_are(tmp_path):
    path = tmp_path / "accelerator.json"
    path.write_text('{"device": "8 × TPU v9", "jax": "0.1", "parts": {}}')
    with pytest.raises(UserError, match=r"is of 8 × TPU v9 with jax 0.1, not of .*another --out"):
        command.run(["accelerator", "--out", str(tmp_path)])
    assert "TPU v9" in path.read_text()


@pytest.mark.parametrize("title", ["Seconds per image", "Seconds per picture", "Seconds"])
def test_a_page_of_an_earlier_version_is_ours(tmp_path, monkeypatch, title):
    """The second title is an earlier version's, the third one somebody else's."""

    def begin(options, tokens):
        raise InterruptedError

    path = tmp_path / "page.html"
    path.write_text(html.page(title))
    monkeypatch.setattr(scaling, "experiment", begin)
    with pytest.raises(UserError if title == "Seconds" else InterruptedError):
        command.run(["scaling", "--page", str(path)])
    assert path.read_text() == html.page(title)


@pytest.mark.parametrize("kind", ["speculate", "quantised", "targets"])
@pytest.mark.parametrize("content", [b'{"mine": {}}', b'{"mine": 1}', b"[1]", b"\xff"])
def test_files_that_are_no_results_stay_as_they_are(tmp_path, kind, content):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.json is another file, which the results would"):
        command.run([kind, "--out", str(path), "--page", str(tmp_path / "page.md")])
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize("kind", ["speculate", "quantised"])
def test_a_page_that_is_no_text_is_refused_before_anything_is_drawn(tmp_path, kind):
    (tmp_path / "page.md").write_bytes(b"\xff")
    argv = [kind, "--out", str(tmp_path / "new.json"), "--page", str(tmp_path / "page.md")]
    with pytest.raises(UserError, match=r"page\.md is no page of text \(is not UTF-8"):
        command.run(argv)
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]


def test_results_that_were_measured_before_are_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CASES", ())
    for name in ("targets.json", "targets.md"):
        (tmp_path / name).write_bytes((ROOT / "docs" / name).read_bytes())
    places = ("--out", str(tmp_path / "targets.json"), "--page", str(tmp_path / "targets.md"))
    command.run(["targets", *places])
    kept = str(ROOT / "docs" / "quantised.json")
    require_results(kept, lambda found: all("nats_per_code" in one for one in found.values()))


def test_a_table_of_somebody_else_s_is_not_replaced(tmp_path):
    (tmp_path / "accelerator.md").write_text("mine")
    with pytest.raises(UserError, match=r"accelerator\.md is another file"):
        command.run(["accelerator", "--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["accelerator.md"]


@pytest.mark.slow
def test_samples_of_a_prompt_read_one_prefix(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "BATCHES", (1,))
    monkeypatch.setattr(scaling, "DOCUMENTS", (0, 2))
    monkeypatch.setattr(scaling, "SAMPLES", (4,))
    size = ("--layers", "2", "--width", "64", "--vocab", "9800", "--prompt", "9", "--new", "16")
    command.run(["scaling", *size, "--page", str(tmp_path / "page.html")])
    figures = json.loads(capsys.readouterr().out)
    lines = figures["batches"]
    assert [(line["prompts"], line["prompt_tokens"]) for line in lines] == [
        (1, 11),
        (1, 11 + 2 * 27),
    ]
    (line,) = figures["samples_of_one_prompt"]
    # 64 places of a prompt's 2 layers, a head of 64, keys and values, for three samples of four.
    assert line["bytes_saved_per_step"] == line["bytes_saved_by_arithmetic"] == 3 * 64 * 1024
    assert (tmp_path / "page.html").read_text().count("<svg") == 2


def test_an_experiment_is_timed_without_a_rival():
    argv = ["train", "--experiment", "cm3leon_350m", "--length", "128", "--batch", "2"]
    experiment = make_learner(command.make_parser().parse_args(argv)).experiment
    assert (experiment.model.layers, experiment.model.context) == (24, 128)
    assert experiment.data.batch == 2


def test_vectors_are_like_clips():
    """Of length 1, the same every time, and with a gap between texts and images."""
    vectors = retrieval.clip_like(3000, 40, 20, seed=1)
    again = retrieval.clip_like(3000, 40, 20, seed=1)
    np.testing.assert_array_equal(vectors.documents, again.documents)
    for kind, queries in vectors.scored.items():
        assert queries.shape == (40, 512)
        assert vectors.tuning[kind].shape == (20, 512)
        np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
    own = (vectors.scored["text"] * vectors.scored["image"]).sum(1)
    others = vectors.scored["text"] @ vectors.scored["text"].T
    assert own.mean() < others.mean(), "a text is nearer to any other text than to its image"
    assert np.linalg.norm(vectors.documents, axis=1) == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
def test_indexes_are_timed_side_by_side(monkeypatch, capsys):
    monkeypatch.setattr(retrieval, "_QUERIES", 100)
    monkeypatch.setattr(retrieval, "_TUNING", 50)
    command.run(["retrieval", "--documents", "2000"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["scann"]["recall"] == {"text": 1, "image": 1, "both": 1}, "it is exact so small"
    exact = figures["exact_queries_per_second"]
    assert min(exact.values()) > 0
    speed = figures["scann"]["queries_per_second"]
    assert figures["times_fastest_exact"] == pytest.approx(speed / max(exact.values()))
    assert figures["growth"]["1000000000"]["exact"]["gigabytes"] == 2048
    if "faiss_left_out_because" not in figures:
        assert min(figures["faiss_ivfpq"]["recall"].values()) > 0.5


def test_blocked_numpy_finds_what_exact_search_finds(monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", 300)
    vectors = retrieval.clip_like(1000, 20, 1, seed=0)
    queries = vectors.scored["both"]
    found = [make(vectors.documents)(queries) for make in (retrieval._numpy, retrieval._jax)]
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_the_input_pipeline_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(data, "_SIZES", {75: (8, 300, 512)})
    monkeypatch.setattr(data, "_ROUNDS", 1)
    command.run(["data"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["75"]["tokens_per_second"] == figures["75"]["rounds"][0] > 0


def test_the_table_of_fewer_bits_is_what_was_measured():
    kept = json.loads((ROOT / "docs" / "quantised.json").read_text())
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert quantised.written_into(page, kept) == page
    assert {one["prompts"] for one in kept.values()} == {600}
    exact = {name: one["exact"] for name, one in kept.items()}
    assert exact["int8"] >= exact["float32"] - 0.01
    assert exact["int4"] >= exact["float32"] - 0.03
    other = {"int8": kept["int8"]}
    replaced = quantised.written_into(page, other)
    assert "| int8 |" in replaced
    assert "| int4 |" not in replaced
    assert quantised.written_into(replaced, kept) == page


@pytest.mark.slow
def test_guesses_are_timed_on_the_shipped_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speculate, "BATCHES", (2,))
    monkeypatch.setattr(speculate, "REPEATS", 1)
    out, page = tmp_path / "speculate.json", tmp_path / "page.md"
    page.write_text("Before.\n")
    command.run(["speculate", "--prompts", "2", "--out", str(out), "--page", str(page)])
    found = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == found
    for case in found["cases"]:
        assert case["windows"]["4"]["same_pictures"] == 1
        assert 1 < case["windows"]["4"]["tokens_per_pass"] <= 4
    assert page.read_text().startswith("Before.\n| documents | guidance |")


@pytest.mark.slow
def test_fewer_bits_are_measured_on_the_shipped_weights(tmp_path, capsys):
    out, page = tmp_path / "quantised.json", tmp_path / "page.md"
    argv = ["quantised", "--prompts", "8", "--only", "int8", "--out", str(out), "--page", str(page)]
    command.run(argv)
    (one,) = json.loads(capsys.readouterr().out).values()
    assert one["exact"] >= 0.5
    # Tests compile without LLVM's passes: some patches get another of two nearly equal codes.
    assert 0 < one["nats_per_code"] < np.log(512)
    assert json.loads(out.read_text()) == {"int8": one}
    assert page.read_text() == quantised.written_into("", {"int8": one})
