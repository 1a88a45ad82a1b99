"""The exam on an untrained model: what is asked, counted and stamped. (What a model can reach is
asked in `tests/launch/test_quickstart.py` and of the shipped weights.)"""

import dataclasses
import json
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3jax import testing
from cm3jax.config import DataConfig, DecoderConfig, MeshConfig, RetrievalConfig, VQGANConfig
from cm3jax.data.sources import RawRecord
from cm3jax.data.tokenize import Tools, tokenise
from cm3jax.decode import loop
from cm3jax.emblems import example
from cm3jax.errors import UserError
from cm3jax.evaluate.protocol import scores_from_json
from cm3jax.evaluate.results import Evaluation
from cm3jax.io.files import read_json
from cm3jax.learners import clip as clip_learner
from cm3jax.model.decoder import Decoder
from cm3jax.retrieval.bank import Bank
from cm3jax.retrieval.bank_files import BankDocument
from cm3jax.retrieval.clip_encoder import CLIP, text_and_image
from cm3jax.tokenizers.image_tokenizer import ImageTokenizer
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.tokenizers.vqgan_model import VQGAN
from cm3jax.training.exported_run import LoadedRun, write_run
from experiments.miniature.base import base
from experiments.miniature.scores.emblem_scores import evaluate, is_current
from launch.evaluate import run
from tests.evaluate.processes import kill, marks, start
from tests.launch.runs import finish
from tests.pages import require_sound

pytestmark = pytest.mark.slow  # the engine is compiled for every kind of prompt
COUNT = 3
DOCUMENTS = (0, 1, 2, 3, 600, 601, 602, 4000, 4001)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Untrained runs side by side, and a bank of the prompts' emblems and a few others."""
    root = tmp_path_factory.mktemp("emblems")
    documents = [example("bank", index) for index in DOCUMENTS]
    small = base("untrained")
    small = dataclasses.replace(
        small,
        vqgan=VQGANConfig(**vars(small.vqgan) | {"channels": 16, "blocks": 1}),
        clip=dataclasses.replace(small.clip, vision_layers=1, text_layers=1),
        model=DecoderConfig(**vars(small.model) | {"layers": 1, "width": 32, "heads": 1}),
        retrieval=RetrievalConfig(encoder="clip", diversity_cut=1.0),
        data=DataConfig(bank=str(root / "bank")),
    )
    captions = [s for i in range(300) for s in example("train", i).segments if isinstance(s, str)]
    text = TextTokenizer.train(captions, small.vocab.text_pieces)
    pixels, ids = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4), jnp.int32)
    image_variables = nn.meta.unbox(VQGAN(small.vqgan).init(jax.random.key(0), pixels))
    image = ImageTokenizer(small.vqgan, image_variables)
    encoder_variables = nn.meta.unbox(CLIP(small.clip).init(jax.random.key(1), ids, pixels))

    def write(name, learner, variables, **fingerprints):
        run = dataclasses.replace(small, name=name, learner=learner)
        write_run(LoadedRun(run, variables, 0, fingerprints), root / name)

    text.save(root / "text")
    text.save(root / "clip")
    write("vqgan", "vqgan", image_variables)
    write("clip", "clip", encoder_variables, text=text.fingerprint)
    tools = Tools(text, image, clip_learner.load(root / "clip"))
    vocab = tools.vocab(small.vocab, small.data.image_size)
    decoder = testing.decoder_variables(Decoder(small.model, vocab.size))
    write("decoder", "decoder", decoder, vocab=vocab.fingerprint)

    raws = [RawRecord(d.key, d.segments, d.kind, d.emblems, d.source, d.licence) for d in documents]
    parts = [text_and_image(raw.segments) for raw in raws]
    members = [
        BankDocument(
            key=item.raw.key,
            ids=item.ids,
            text=words or "",
            has_text=words is not None,
            has_image=picture is not None,
            source=item.raw.source,
            licence=item.raw.licence,
            subjects=item.raw.subjects,
        )
        for item, (words, picture) in zip(tokenise(raws, tools, vocab), parts, strict=True)
    ]
    vectors = tools.encoder.encode_documents(parts)
    Bank.build(root / "bank", members, vectors, tools.encoder.fingerprint, vocab.fingerprint)
    return root


@pytest.fixture(scope="module")
def evaluation(chain):
    lines = []
    found = evaluate(chain / "decoder", count=COUNT, say=lines.append)
    assert len(lines) == len(found.scores)
    return found


def test_every_score_has_its_count_and_its_documents(evaluation):
    asked = {name: score.n for name, score in evaluation.scores.items()}
    drawn_with_documents = 5 * COUNT  # two kinds with 1 and 2 documents, and the control
    assert asked.pop("copied_share") == drawn_with_documents
    assert set(asked.values()) == {COUNT}
    retrieved = {name: score.protocol.retrieved for name, score in evaluation.scores.items()}
    for kind in ("heldout_emblem_accuracy", "heldout_pair_accuracy"):
        assert [retrieved[f"{kind}.docs_{k}"] for k in (0, 1, 2)] == [0, 1, 2]
    for name in ("scene_accuracy", "caption_exact", "infill_exact", "vqgan_read_exact"):
        assert retrieved[name] == 0
    by_hand = [n for n, s in evaluation.scores.items() if "by name" in s.protocol.documents]
    assert by_hand == ["heldout_emblem_accuracy.right_and_wrong"]


def test_a_bank_that_has_lost_an_emblem_is_refused_before_anything_is_drawn(chain):
    with pytest.raises(UserError, match=r"has no document of \w+, \w+, \w+, which"):
        evaluate(chain / "decoder", count=50)


def test_an_untrained_model_draws_no_emblem_and_chance_says_so(evaluation):
    score = evaluation.scores["heldout_emblem_accuracy.docs_2"]
    assert score.value == 0.0
    assert score.chance < 1e-6
    retrieval = evaluation.scores["retrieval_hit_2.text"]
    assert 0.2 < retrieval.chance < 0.7  # of 9 documents, one or two show the emblem


def test_figures_show_documents_with_scores_before_the_pictures(evaluation):
    figures = [f for f in evaluation.figures if f.kind == "heldout_emblem_accuracy"]
    assert len(figures) == 2 * (COUNT // 2)
    for figure in figures:
        labels = [cell.label for cell in figure.cells]
        assert all(label.startswith("retrieved, ") for label in labels[:2])
        assert labels[2:] == ["0 documents", "1 document", "2 documents", "as it should be"]
        assert all(cell.picture.startswith("data:image/png") for cell in figure.cells[2:])
        assert [cell.correct is None for cell in figure.cells] == [True] * 2 + [False] * 3 + [True]
    kinds = {figure.kind for figure in evaluation.figures}
    assert {"heldout_pair_accuracy", "scene_accuracy", "caption_exact", "infill_exact"} < kinds


def test_the_same_weights_and_seed_give_the_same_pictures(chain, evaluation):
    again = evaluate(chain / "decoder", count=COUNT, say=lambda line: None)
    assert without_seconds(again) == without_seconds(evaluation)
    other = evaluate(chain / "decoder", count=COUNT, seed=1, say=lambda line: None)
    assert other.pictures != evaluation.pictures
    assert other.weights == evaluation.weights


def without_seconds(found):
    return dataclasses.replace(found, seconds=0.0)


def test_a_killed_evaluation_goes_on(chain, evaluation, tmp_path, monkeypatch):
    real, asked = loop.decode_each, []

    def dies(model, variables, vocab, requests, *rest):
        asked.extend(requests)
        for finished in real(model, variables, vocab, requests, *rest):
            if len(asked) > 4 * COUNT:
                raise KeyboardInterrupt
            yield finished

    def exam():
        return evaluate(chain / "decoder", count=COUNT, say=lambda line: None, keep=tmp_path)

    monkeypatch.setattr(loop, "decode_each", dies)
    with pytest.raises(KeyboardInterrupt):
        exam()
    asked.clear()
    monkeypatch.setattr(loop, "decode_each", lambda *call: asked.extend(call[3]) or real(*call))
    assert without_seconds(exam()) == without_seconds(evaluation)
    assert len(asked) == 6 * COUNT  # ten lists of prompts, of which four were done


def ids(journal):
    """What was drawn for each request."""
    return {one["request"]: [sample["ids"] for sample in one["samples"]] for one in journal}


@pytest.mark.parametrize(
    ("words", "lists"),
    [
        (("emblems", "--prompts", "3"), 10),
        (("tasks", "--tasks", "editing", "vqa", "story", "--cases", "2"), 3),
    ],
    ids=["emblems", "tasks"],
)
def test_a_killed_process_goes_on(chain, tmp_path, words, lists):
    def command(name):
        return [*words, "--run", str(chain / "decoder"), "--out", str(tmp_path / f"{name}.json")]

    def samples(name):
        return sorted((tmp_path / f"{name}.samples").glob("*.json"))

    finish([start(command("whole"))])
    chance = random.Random(0)
    few = chance.randint(1, lists - 2)
    kill(command("killed"), lambda: len(samples("killed")) >= few, chance.uniform(0, 0.5))
    assert not (tmp_path / "killed.json").exists()
    kept = {path: json.loads(path.read_text()) for path in samples("killed")}
    drawn = marks(list(kept))
    finish([start(command("killed"))])
    assert few <= len(kept) < len(samples("killed")) == lists
    for one, other in zip(samples("killed"), samples("whole"), strict=True):
        ours, theirs = (json.loads(path.read_text()) for path in (one, other))
        assert one.name == other.name
        assert ids(ours) == ids(theirs)
        # Nothing that was drawn was drawn again.
        before = kept.get(one, [])
        assert ours[: len(before)] == before
        assert len(before) < len(ours) or marks([one])[one] == drawn[one]
    for suffix in ("json", "html"):
        one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("killed", "whole"))
        assert one == other


def test_devices_share_the_drawing(chain, evaluation):
    mesh = MeshConfig(data=8)
    shared = evaluate(chain / "decoder", count=COUNT, say=lambda line: None, mesh=mesh)
    assert without_seconds(shared) == without_seconds(evaluation)


def test_tasks_leave_scores_a_page_and_what_was_drawn(chain, tmp_path, monkeypatch):
    names = ("editing", "vqa", "story")
    words = ["tasks", "--run", str(chain / "decoder"), "--tasks", *names, "--cases", "2"]
    run([*words, "--out", str(tmp_path / "scores.json"), "--mesh.data", "2"])
    scores = scores_from_json(read_json(tmp_path / "scores.json", "the scores"))
    assert {name.split(".")[1].split("_")[0] for name in scores} == set(names)
    assert all(score.n == 2 for score in scores.values())
    page = (tmp_path / "scores.html").read_text()
    require_sound(page)
    assert all(f"<h2>{name}</h2>" in page for name in scores)
    assert page.count("as it should be") >= 2 * len(scores)
    assert len(list((tmp_path / "scores.samples").iterdir())) == len(names)
    monkeypatch.setattr(loop, "plan_groups", lambda requests, *rest: 1 / 0 if requests else ())
    run([*words, "--out", str(tmp_path / "scores.json")])  # nothing is drawn again
    assert scores_from_json(read_json(tmp_path / "scores.json", "the scores")) == scores


def test_a_result_is_current_for_its_own_weights_code_and_count(chain, evaluation, tmp_path):
    evaluation.save(tmp_path / "a.json")
    stored = Evaluation.load(tmp_path / "a.json")
    assert stored == evaluation
    assert is_current(stored, chain / "decoder", COUNT)
    assert not is_current(stored, chain / "decoder", COUNT + 1)
    foreign = dataclasses.replace(stored, weights={**stored.weights, "decoder": "another"})
    assert not is_current(foreign, chain / "decoder", COUNT)


def test_every_picture_counts_in_the_fingerprint(evaluation):
    assert len(evaluation.pictures) == 16
    assert np.isfinite(evaluation.seconds)
