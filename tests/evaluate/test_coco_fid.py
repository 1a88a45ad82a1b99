"""The COCO protocol from the command line, on an untrained chain and a narrow Inception."""

import dataclasses
import json
import re

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from etils import epath

from cm3jax import testing
from cm3jax.errors import UserError
from cm3jax.evaluate import coco_fid, drawing, pictures
from cm3jax.evaluate.coco import Caption, read_captions
from cm3jax.evaluate.coco_fid import CocoExam, from_folder
from cm3jax.evaluate.coco_page import COLUMNS
from cm3jax.evaluate.features import Extractor
from cm3jax.evaluate.fid import Gaussian
from cm3jax.evaluate.inception_weights import load_inception, shapes
from cm3jax.evaluate.pictures import Features
from cm3jax.evaluate.protocol import scores_from_json
from cm3jax.generation import loading
from launch.evaluate import run
from tests.evaluate import inputs
from tests.pages import require_sound
from tests.test_shipped import WEIGHTS

COUNT = 5


def write_tree(root, texts, pictures):
    """Captions and images in COCO's format, one caption each; the caption file."""
    (root / "val").mkdir(parents=True)
    names = [f"COCO_val_{100 + place:012d}.jpg" for place in range(len(texts))]
    for name, picture in zip(names, pictures, strict=True):
        PIL.Image.fromarray(picture).save(root / "val" / name, "JPEG", quality=95)
    value = {
        "images": [{"id": 100 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 7 * i + 3, "image_id": 100 + i, "caption": t} for i, t in enumerate(texts)
        ],
    }
    (root / "captions.json").write_text(json.dumps(value))
    return root / "captions.json"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    testing.write_chain(root)
    texts = [testing.CAPTIONS[i % 4][:20] for i in range(8)]
    write_tree(root, texts, inputs.pictures(8, seed=4, size=20))
    safetensors.numpy.save_file(inputs.weights(shapes(2)), root / "inception.safetensors")
    return root


def words(home, out, *more):
    fixed = ("--captions", home / "captions.json", "--real", home / "val", "--out", out)
    weights = ("--inception", home / "inception.safetensors", "--crop", "16")
    return [str(word) for word in ("coco_fid", *fixed, *weights, *more)]


def from_run(home, out, *more):
    how = ("--run", home / "decoder", "--documents", "0", "1", "--samples", "1", "2")
    run(words(home, out, *how, "--count", COUNT, *more))


@pytest.fixture(scope="module")
def outcome(home):
    """A whole run in chunks of two captions."""
    patch = pytest.MonkeyPatch()
    patch.setattr(drawing, "CHUNK", 2)
    from_run(home, home / "whole")
    yield home / "whole"
    patch.undo()


def drawn(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("samples_*/*.png"))}


@pytest.mark.slow
def test_every_way_has_its_pictures_scores_and_stamp(home, outcome):
    assert len(drawn(outcome)) == 4 * COUNT
    scores = scores_from_json(json.loads((outcome / "scores.json").read_text()))
    ways = [f"docs_{k}.samples_{n}" for k in (0, 1) for n in (1, 2)]
    assert scores.keys() == {f"{way}.{name}" for way in ways for name in ("fid", "kid", "clip")}
    stamp = scores["docs_1.samples_2.fid"].protocol
    assert stamp.regime == "zero-shot, 1 retrieved"
    assert (stamp.samples, stamp.licensed_share, stamp.split) == (2, 1.0, "captions.json")
    assert stamp.prompts == f"{COUNT} of 8 captions of captions.json, drawn by seed 0"
    assert "best CLIP cosine" in stamp.rerank
    assert stamp.resize.startswith("clean; real: 8 pictures of val, centre squares of 16 pixels")
    assert "Inception" in stamp.extractor
    bare = scores["docs_0.samples_1.clip"].protocol
    assert (bare.regime, bare.rerank, bare.bank, bare.resize) == ("zero-shot", *["none"] * 3)
    for name, score in scores.items():
        assert score.n == COUNT
        assert score.interval[0] <= score.value <= score.interval[1], name
    assert Gaussian.load(outcome / "reference.npz").mean.shape == (128,)


@pytest.mark.slow
def test_the_best_of_two_is_one_of_the_two_and_the_likelier_by_clip(outcome):
    notes = json.loads((outcome / "docs_1/drawn-00000.json").read_text())
    pictures = drawn(outcome)
    for name, note in notes.items():
        assert len(note["documents"]) == 1
        first, best = (pictures[f"docs_1/samples_{n}/{int(name):012d}.png"] for n in (1, 2))
        assert (first == best) == (note["cosines"][0] >= note["cosines"][1])


@pytest.mark.slow
def test_the_page_has_the_paper_s_columns_and_the_worst_and_best_cases(outcome):
    page = (outcome / "report.html").read_text()
    require_sound(page)
    assert all(f"<th>{name}</th>" in page for name in COLUMNS)
    assert "100 % licensed" not in page  # no corpus beside the run says so
    for end in ("worst", "best"):
        shown = f"The {COUNT // 2} {end} of {COUNT} cases by CLIP: docs_1 samples_2"
        assert shown in page
    cases = 4 * 2 * (COUNT // 2)
    assert page.count("<span>drawn, cosine") == page.count("<span>COCO&#x27;s own") == cases


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_pictures(home, outcome, monkeypatch):
    out, real = home / "killed", drawing._draw_chunk
    calls = []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(drawing, "_draw_chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        from_run(home, out)
    (out / "docs_0/drawn-00001.json").unlink()  # killed between images and note
    next(out.glob("docs_0/samples_1/*.png")).unlink()  # somebody deletes what is noted as drawn
    monkeypatch.setattr(drawing, "_draw_chunk", real)
    from_run(home, out, "--part", "1/2")
    assert not (out / "scores.json").exists()
    from_run(home, out, "--part", "2/2")
    assert drawn(out) == drawn(outcome)
    first, second = ((o / "scores.json").read_text() for o in (out, outcome))
    assert json.loads(first) == json.loads(second)
    with pytest.raises(UserError, match="drawn with other captions, seed"):
        from_run(home, out, "--seed", "1", "--count", str(COUNT))
    # What the stamp says of the code holds for every image.
    monkeypatch.setattr(coco_fid, "code_version", lambda: "0.1.0+another")
    with pytest.raises(UserError, match="drawn with other code;"):
        from_run(home, out)


def test_pictures_of_another_retrieval_are_another_setting(home, tmp_path):
    """What the stamp says of retrieval holds for every image in the folder, too."""
    generator = loading.load(home / "decoder")
    extractor = Extractor(load_inception(home / "inception.safetensors"))
    captions = read_captions(home / "captions.json")
    exam = CocoExam(captions, extractor, None, str(home / "val"), 16, epath.Path(tmp_path))
    one = coco_fid._setting(generator, "w", exam, 1, (1,), 0, "e")
    none = coco_fid._setting(generator, "w", exam, 0, (1,), 0, "e")
    generator.retriever.config = dataclasses.replace(generator.retriever.config, pool=7)
    other = coco_fid._setting(generator, "w", exam, 1, (1,), 0, "e")
    changed = {name for name in other.origin if other.origin[name] != one.origin[name]}
    assert changed == {"retrieval.pool"}
    assert coco_fid._setting(generator, "w", exam, 0, (1,), 0, "e") == none


@pytest.mark.slow
def test_whoever_ends_last_finds_everything(home, tmp_path, monkeypatch):
    """Also if the other one was behind with the first images and ahead with the next."""
    monkeypatch.setattr(drawing, "CHUNK", 4)
    extractor = Extractor(load_inception(home / "inception.safetensors"))
    captions = read_captions(home / "captions.json")
    exam = CocoExam(captions, extractor, None, str(home / "val"), 16, epath.Path(tmp_path))
    _, sets = from_folder(home / "val", exam)
    extract = Features.extract

    def overtaken(self, share, say):
        if share == (0, 2) and self.folder.name == "pictures":
            assert not exam.extract(sets, (1, 2))
        extract(self, share, say)

    monkeypatch.setattr(Features, "extract", overtaken)
    assert exam.extract(sets, (0, 2))


@pytest.mark.slow
def test_pictures_made_elsewhere_are_scored_by_their_names(home, outcome, capsys):
    made = outcome / "docs_1/samples_2"
    clip = ("--clip", home / "clip")
    run(words(home, home / "elsewhere", "--made", made, *clip))
    scores = scores_from_json(json.loads((home / "elsewhere/scores.json").read_text()))
    own = scores_from_json(json.loads((outcome / "scores.json").read_text()))
    for name in ("fid", "kid", "clip"):
        assert scores[name].value == pytest.approx(own[f"docs_1.samples_2.{name}"].value, rel=1e-5)
    assert scores["fid"].protocol.sampler == "not known"
    row = next(line for line in capsys.readouterr().out.splitlines() if "samples_2  " in line)
    assert re.fullmatch(r"samples_2( +–){6} .*", row)
    stats = words(home, home / "stats", "--made", made)
    stats[stats.index("--real") + 1] = str(outcome / "reference.npz")
    run(stats)
    again = scores_from_json(json.loads((home / "stats/scores.json").read_text()))
    assert again.keys() == {"fid"}  # no images for KID, no encoder for CLIP
    assert again["fid"].value == pytest.approx(scores["fid"].value, rel=1e-9)


def test_which_captions_are_asked_depends_on_the_file_and_the_seed(home):
    path = home / "captions.json"
    few, same = read_captions(path, 4), read_captions(path, 4)
    assert few == same
    assert [c.id for c in few.chosen] == sorted(c.id for c in few.chosen)
    assert {c.id for c in few.chosen} != {c.id for c in read_captions(path, 4, seed=1).chosen}
    assert len(read_captions(path).chosen) == len(read_captions(path, 99).chosen) == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--run", "a", "--made", "b"), "either --run or --made"),
        (("--made", "nowhere"), "holds 0 images"),
        (("--run", "nowhere"), "nowhere"),
        (("--run", "nowhere", "--part", "3/2"), "is not a share"),
        (("--run", "nowhere", "--samples", "0"), "--samples takes numbers from 1"),
        (("--run", "nowhere", "--captions", "none.json"), "the caption file is missing"),
        (("--run", "nowhere", "--inception", "none.pth"), "does not exist"),
    ],
)
def test_bad_input_raises_user_error(home, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run(words(home, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_a_single_caption_is_refused_before_it_is_drawn(home, tmp_path):
    rows = json.loads((home / "captions.json").read_text())
    rows["annotations"] = [rows["annotations"][0], rows["annotations"][1] | {"caption": " "}]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    more = ("--captions", tmp_path / "captions.json")
    with pytest.raises(UserError, match=r"gives 1 caption to draw \(1 left out: it has no text\)"):
        from_run(home, tmp_path / "out", *more)
    assert not list(tmp_path.rglob("*.png"))


def test_a_file_of_another_form_raises_user_error(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [{"id": 1}]}')
    with pytest.raises(UserError, match="is not COCO's format"):
        read_captions(tmp_path / "a.json")


@pytest.mark.slow
def test_the_shipped_weights_draw_for_coco_with_0_1_and_2_documents(tmp_path, capsys):
    from cm3jax.emblems import prompts

    asked = prompts("heldout", 6)
    pictures = np.stack([prompt.image for prompt in asked])
    write_tree(tmp_path, [prompt.text for prompt in asked], pictures)
    bank = emblem_bank(tmp_path / "bank", asked, WEIGHTS)
    safetensors.numpy.save_file(inputs.weights(shapes(2)), tmp_path / "inception.safetensors")
    out = tmp_path / "out"
    more = ("--run", WEIGHTS / "decoder", "--bank", bank, "--crop", "32")
    run(words(tmp_path, out, *more))
    table = capsys.readouterr().out
    scores = scores_from_json(json.loads((out / "scores.json").read_text()))
    assert len(drawn(out)) == 6 * len(asked)
    assert len(re.findall(r"miniature/decoder +yes", table)) == 6
    # Documents are what these weights draw memory-only emblems by.
    assert scores["docs_2.samples_1.fid"].value < scores["docs_0.samples_1.fid"].value


def emblem_bank(path, asked, weights):
    """A bank of documents that show the prompts' emblems, by the shipped encoder."""
    from cm3jax.emblems import example
    from cm3jax.emblems.examples import bank_documents
    from cm3jax.emblems.looks import catalogue
    from cm3jax.generation import loading
    from cm3jax.learners import clip
    from cm3jax.retrieval.bank import Bank
    from cm3jax.retrieval.bank_files import BankDocument
    from cm3jax.sequence.document import Image, Text, render

    generator, encoder = loading.load(weights / "decoder"), clip.load(weights / "clip")
    names = catalogue(0).names
    numbers = [names.index(prompt.scene.emblems[0].name) for prompt in asked]
    found = [example("bank", place) for number in numbers for place in bank_documents(number)[:3]]
    pairs = [document.segments for document in found]
    codes = generator.image.encode([picture for _, picture in pairs])
    members = [
        BankDocument(
            f"emblem-{place}",
            render((Text(tuple(generator.text.encode(text))), Image(tuple(own))), generator.vocab),
            text,
            True,
            True,
            "emblems",
            "CC0-1.0",
        )
        for place, ((text, _), own) in enumerate(zip(pairs, codes.tolist(), strict=True))
    ]
    vectors = encoder.encode_documents([(text, picture) for text, picture in pairs])
    Bank.build(path, members, vectors, encoder.fingerprint, generator.vocab.fingerprint)
    return path


def test_captions_that_cannot_be_asked_are_left_out_and_said(tmp_path):
    rows = [
        (0, 5, "zero"),
        (1, 6, "one"),
        (1, 7, "another's id"),
        (2, 8, " "),
        (3, 8, None),
        (4, 8, "half \ud800"),
        ("5", 99, "no such image"),
        (None, 8, "x"),
        ([6], 8, "x"),
        (9.5, 8, "x"),
    ]
    annotations = [dict(zip(("id", "image_id", "caption"), row, strict=True)) for row in rows]
    images = [{"id": 5, "file_name": "a.jpg"}, {"id": 6}, "no object"]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": images, "annotations": [*annotations, "no object"]}))
    found = read_captions(path)
    assert [(c.id, c.text, c.file) for c in found.chosen] == [
        (0, "zero", "a.jpg"),
        (1, "one", ""),
        (5, "no such image", ""),
    ]
    for said in ("1 left out: another has its id", "2 left out: it has no text", "4 left out: it"):
        assert said in found.left_out
    path.write_text(json.dumps([1]))
    with pytest.raises(UserError, match="is not COCO's format"):
        read_captions(path)


@pytest.mark.parametrize(
    ("names", "stems", "wanted"),
    [
        # As COCO 2017 names its files, which are numbers of images that may be captions' ids too.
        ({10: "000000000042.jpg", 42: "000000000010.jpg"}, ["000000000010"], [10]),
        ({10: "COCO_val_42.jpg", 42: "COCO_val_10.jpg"}, ["000000000010", "42"], [10, 42]),
        ({10: "COCO_val_42.jpg", 42: "COCO_val_10.jpg"}, ["COCO_val_42", "COCO_val_10"], [10, 42]),
        (
            {10: "000000000042.jpg", 3: "000000000010.jpg"},
            ["000000000042", "000000000010"],
            [10, 3],
        ),
        ({0: "x.jpg"}, ["000000000000"], [0]),
        ({0: "x.jpg"}, ["made-1"], [None]),
    ],
)
def test_pictures_are_named_by_ids_or_by_files(names, stems, wanted):
    captions = [Caption(number, f"caption {number}", file) for number, file in names.items()]
    found = coco_fid._by_name([epath.Path(f"made/{stem}.png") for stem in stems], captions)
    assert [one and one.id for one in found] == wanted


def test_files_that_are_no_pictures_are_said(tmp_path):
    for name in ("a.png", "b.tif", "c.gif", "d.heic", "e.txt", "f", ".hidden"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    assert [file.name for file in pictures.files_in(tmp_path)] == ["a.png", "b.tif", "c.gif"]
    said = []
    pictures.say_left_out(tmp_path, said.append)
    (line,) = said
    assert line.endswith(
        "left out 3 that are not images by their names (1 .heic, 1 .txt, 1 no suffix)"
    )


def test_fid_reads_pictures_as_training_does(tmp_path):
    deep = np.full((8, 8), 32896, np.uint16)  # 128 * 257
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (pictures.read_picture(tmp_path / "deep.png", 0) == 128).all()
    PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (pictures.read_picture(tmp_path / "clear.png", 0) == 255).all()
    PIL.Image.new("F", (8, 8)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="floating-point numbers"):
        pictures.read_picture(tmp_path / "float.tif", 0)
