"""Chameleon folders in and out, against what transformers computes (`make_references.py`)."""

import dataclasses
import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cm3jax import testing
from cm3jax.checkpoint import load_run
from cm3jax.config import DataConfig, MeshConfig, OptimConfig, TokenizersConfig, TrainConfig
from cm3jax.data.pipeline import HostBatch, Position
from cm3jax.errors import UserError
from cm3jax.generation import loading
from cm3jax.generation.prompts import Wanted, picture_prompt
from cm3jax.interop import folders, hf_chameleon, tokenizer_json
from cm3jax.io.files import digest
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.model.decoder import Decoder
from cm3jax.sequence.rows import Batch
from cm3jax.sequence.vocab import Vocab
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.tokenizers.vqgan_model import VQGAN
from cm3jax.train import train
from cm3jax.training.metrics import read_metrics
from tests.interop import cases, foreign

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 24 + 64


@dataclasses.dataclass(frozen=True)
class Imported:
    """A case after its import: what was stored, what was loaded, and the model compiled."""

    name: str
    folder: hf_chameleon.Checkpoint
    stored: dict
    params: dict
    rows: tuple
    score: object

    def logits(self, params) -> np.ndarray:
        """Of all rows, in the order of their ids."""
        ours = np.asarray(self.score(params, *self.rows))
        theirs = np.empty_like(ours)
        theirs[..., self.folder.vocabulary.ids] = ours
        return theirs

    def errors(self, params) -> dict[str, float]:
        """Largest difference of each input's logits, over the scale of the reference."""
        text, image, packed = self.logits(params)
        found = {
            "text": text[:24],
            "image": image[:75],
            "first": packed[:10],
            "second": packed[10:24],
        }
        return {
            key: float(np.abs(value - self.stored[key]).max() / np.abs(self.stored[key]).max())
            for key, value in found.items()
        }


@pytest.fixture(scope="module", params=cases.CASES)
def case(request, tmp_path_factory):
    name = request.param
    home = tmp_path_factory.mktemp("chameleon")
    source = foreign.write_chameleon(home / "in", name)
    report = hf_chameleon.convert(source, home / "out", None, source / "config.json")
    assert len(report) == len(foreign.state(f"chameleon-{name}"))
    folder, run = hf_chameleon.read_checkpoint(source), load_run(home / "out")
    stored = foreign.stored(f"chameleon-{name}")
    ours = np.argsort(folder.vocabulary.ids)
    theirs = cases.rows(cases.CASES[name].seed)
    image = ours[theirs["image"]]
    place = theirs["image"] == cases.vocabulary_map()["<image>"]
    image[place] = stored["codes"] + Vocab(folder.vocabulary.config).first_image
    packed = ours[np.concatenate([theirs["first"], theirs["second"]])]
    inputs = [
        _padded([ours[stored["greedy"]], image, packed]),
        _padded([np.arange(LENGTH), np.arange(75), np.r_[:10, :14]]),
        _padded([np.ones(LENGTH), np.ones(75), np.r_[[1] * 10, [2] * 14]]),
    ]
    model = Decoder(run.experiment.model, len(ours))

    @jax.jit
    def score(params, *rows):
        hidden = model.apply({"params": params}, *rows)
        return model.apply({"params": params}, hidden, method="logits")

    return Imported(name, folder, stored, run.variables["params"], tuple(inputs), score)


def _padded(rows) -> jnp.ndarray:
    return jnp.asarray(np.stack([np.pad(row, (0, LENGTH - len(row))) for row in rows]), jnp.int32)


def test_logits_are_those_of_transformers(case):
    errors = case.errors(case.params)
    assert max(errors.values()) <= 2e-4, errors


def test_greedy_continuation_is_that_of_transformers(case):
    """By induction: after its first n tokens, the next one is ours too."""
    logits = case.logits(case.params)[0]
    names = cases.vocabulary_map()
    codes = [id_ for name, id_ in names.items() if name.startswith("IMGIMG")]
    logits[:, codes] = -np.inf  # transformers never says an image
    greedy = case.stored["greedy"]
    np.testing.assert_array_equal(logits[23:-1].argmax(-1), greedy[24:])
    assert len(greedy[24:]) == 64


def test_every_tensor_matters(case):
    """A reference that some tensor does not reach would say nothing about it."""
    weights = foreign.state(f"chameleon-{case.name}", cases.CASES[case.name].seed)
    checked = 0
    for place in case.folder.places:
        for key in place.keys:
            changed = weights | {key: np.roll(weights[key], 1, axis=-1) + 0.1}
            node = foreign.tree({place.path: foreign.read(place, changed)})["params"]
            errors = case.errors(_merged(case.params, node))
            assert min(errors["text"], errors["image"]) > 1e-3, key
            checked += 1
    assert checked == sum("vqmodel" not in key for key in weights)


def _merged(tree: dict, other: dict) -> dict:
    return tree | {
        key: _merged(tree[key], value) if isinstance(value, dict) else value
        for key, value in other.items()
    }


@pytest.mark.parametrize(("name", "dtype"), list(zip(cases.CASES, foreign.TYPES, strict=True)))
def test_there_and_back_bit_for_bit(tmp_path, name, dtype):
    source = foreign.write_chameleon(tmp_path / "in", name, dtype)
    hf_chameleon.convert(source, tmp_path / "ours", None, source / "config.json")
    written = hf_chameleon.export(tmp_path / "ours", tmp_path / "back")
    before, after = {}, {}
    for folder, tensors in (("in", before), ("back", after)):
        for file in (tmp_path / folder).glob("*.safetensors"):
            tensors |= safetensors.numpy.load_file(file)
    assert before.keys() == after.keys()
    assert len(after) == written
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype == foreign.TYPES[dtype]
        if name == "broadcast" and "_norm." in key and tensor.ndim == 2:
            # transformers reads a row per head, whatever it was given.
            tensor = np.repeat(tensor, after[key].shape[0] // len(tensor), 0)
        assert tensor.shape == after[key].shape
        assert tensor.tobytes() == after[key].tobytes(), key
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("in", "back")]
    vq = [config.pop("vq_config") for config in configs]
    assert configs[0].items() <= configs[1].items()
    assert vq[0].items() <= vq[1].items()
    tokenizers = [(tmp_path / f / "tokenizer.json").read_text() for f in ("in", "back")]
    assert tokenizers[0] == tokenizers[1]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A decoder in our own order of ids, with our own tokenizers."""
    home = tmp_path_factory.mktemp("own")
    foreign.write_own(home / "run")
    return home


def test_ours_there_and_back(own, tmp_path):
    """A model in our own order of ids, with our own text tokenizer, survives the other format."""
    hf_chameleon.export(own / "run", tmp_path / "foreign")
    config = json.loads((tmp_path / "foreign" / "config.json").read_text())
    hf_chameleon.convert(
        tmp_path / "foreign", tmp_path / "again", None, tmp_path / "foreign" / "config.json"
    )
    runs = [load_run(own / "run"), load_run(tmp_path / "again")]
    assert runs[0].experiment == dataclasses.replace(runs[1].experiment, name="own")
    jax.tree.map(np.testing.assert_array_equal, runs[0].variables, runs[1].variables)
    texts = [folder / "text" / "text.model" for folder in (own / "run", tmp_path / "again")]
    assert texts[0].read_bytes() == texts[1].read_bytes()
    assert config["vocabulary_map"]["</s>"] == Vocab.eos


def test_transformers_reads_our_text_tokenizer(own, tmp_path):
    """The same ids, whatever a text says, in the vocabulary of the exported weights."""
    from transformers import PreTrainedTokenizerFast

    hf_chameleon.export(own / "run", tmp_path / "out")
    run = load_run(own / "run")
    ours, vocab = TextTokenizer.load(own / "run" / "text"), Vocab(run.experiment.vocab)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert len(theirs) == vocab.size
    draw = random.Random(0)
    texts = [*testing.CAPTIONS, "", " ", "  two  spaces ", "</s>", "<pad>", "<0x41>", "IMGIMGAZ"]
    texts += [
        "\u2581",
        "\ue000",
        "\ue0001\u2581",
        "a\tb\n",
        "\u2028",
        "\x00",
        "\U0001f98a caf\u00e9",
    ]
    letters = "".join(testing.CAPTIONS) + "\u2581\ue00001 \u00e9\U0001f98a"
    texts += ["".join(draw.choices(letters, k=draw.randint(0, 40))) for _ in range(500)]
    for text in texts:
        ids = [vocab.first_text + piece for piece in ours.encode(text)]
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.decode(ids) == text


def test_a_unigram_model_has_no_tokenizer_json():
    model = TextTokenizer.train(testing.CAPTIONS * 20, 300, "unigram")
    assert tokenizer_json.of_sentencepiece(model._bytes, range(300), {}) is None


def test_an_import_without_its_notes_is_not_exported(tmp_path):
    source = foreign.write_chameleon(tmp_path / "in", "swin")
    hf_chameleon.convert(source, tmp_path / "out", None, source / "config.json")
    (tmp_path / "out" / "text" / "import.json").unlink()
    with pytest.raises(UserError, match=r"no import\.json, which says where its ids lie"):
        hf_chameleon.export(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("stored", "said", "ours"),
    [
        ("float32", {}, "float32"),
        ("float16", {}, "float32"),  # float32 holds all of float16
        ("bfloat16", {}, "bfloat16"),
        ("float32", {"torch_dtype": "bfloat16"}, "bfloat16"),
        ("bfloat16", {"torch_dtype": "float16", "dtype": "float32"}, "float32"),
    ],
)
def test_it_computes_in_the_type_that_the_folder_says(tmp_path, stored, said, ours):
    source = foreign.write_chameleon(tmp_path / "in", "plain", stored)
    config = json.loads((source / "config.json").read_text())
    del config["torch_dtype"]
    (source / "config.json").write_text(json.dumps(config | said))
    assert hf_chameleon.read_checkpoint(source).model.dtype == ours


def test_a_whole_file_goes_before_a_stale_index(tmp_path):
    """As in transformers; what is left over from shards is not looked at."""
    source = foreign.write_chameleon(tmp_path / "in", "plain")
    tensors = folders.read_tensors(source)
    arrays = {key: tensor.read(...) for key, tensor in tensors.items()}
    for shard in source.glob("model-*.safetensors"):
        shard.unlink()
    with pytest.raises(UserError, match="does not exist"):
        folders.read_tensors(source)
    safetensors.numpy.save_file(arrays, source / "model.safetensors")
    assert folders.read_tensors(source).keys() == tensors.keys()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that was imported with the decoder of its image tokenizer."""
    home = tmp_path_factory.mktemp("whole")
    source = foreign.write_chameleon(home / "in", "swin", "bfloat16")
    decoder, config = foreign.write_vqgan(home / "vq")
    weights = foreign.state("vq")
    theirs = foreign.state("chameleon-swin", 1)
    # The folder's image tokenizer is the checkpoint's, as bfloat16.
    for file in source.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        for key in tensors.keys() & theirs.keys():
            if key.startswith("model.vqmodel."):
                tensors[key] = weights[key.removeprefix("model.vqmodel.")].astype("bfloat16")
        safetensors.numpy.save_file(tensors, file)
    hf_chameleon.convert(source, home / "out", decoder, config)
    return home


@pytest.fixture(scope="module")
def generator(whole):
    return loading.load(whole / "out")


def test_texts_never_become_control_tokens(generator):
    text = generator.text
    for written in ("a fox, <eoss> and <image>", "<sentinel:0><s>", "", "a fox"):
        pieces = text.encode(written)
        assert all(0 <= piece < text.pieces for piece in pieces)
        assert text.decode(pieces) == written
    assert text.decode(text.encode("IMGIMGDZ")) == "<unk>" * 8  # this table has no capitals
    with pytest.raises(IndexError):
        text.decode([text.pieces])


@pytest.mark.slow
def test_it_reads_pictures_like_its_float32_self(generator):
    pictures = np.round((cases.scenes(4) + 1) * 127.5).astype(np.uint8)
    encode = functools.partial(VQGAN(generator.image.config).apply, method="encode")
    where = hf_chameleon.taming_vqgan.vqgan_places(generator.image.config)
    weights = foreign.state("vq")
    arrays = foreign.tree({place.path: foreign.read(place, weights) for place in where})
    arrays["codebook"]["quantiser"]["uses"] = np.ones(cases.CODES, np.float32)
    codes = encode(arrays, jnp.asarray(pictures / 127.5 - 1, jnp.float32))
    np.testing.assert_array_equal(generator.image.encode(pictures), codes)


@pytest.mark.slow
def test_an_import_draws_and_tells(generator, tmp_path):
    import PIL.Image

    drawn = generator.generate("a red fox", seed=1)
    assert drawn.image.shape == (16, 16, 3)
    PIL.Image.fromarray(drawn.image).save(tmp_path / "x.png")
    told = generator.generate(f"a <mask>: <image:{tmp_path / 'x.png'}> <infill>", seed=1)
    assert isinstance(told.text, str)
    prompt = dataclasses.replace(picture_prompt("a fox"), wanted=Wanted.DOCUMENT)
    ((story,),) = generator.sample([prompt], seed=1)
    assert story.segments


class Rows:
    """The same batch of ids at every step."""

    def __init__(self, rows: np.ndarray):
        self._rows = rows
        self.fingerprints = {"rows": digest(rows)}

    def batches(self, position: Position):
        tokens, targets = self._rows[:, :-1], self._rows[:, 1:]
        ones = np.ones_like(tokens)
        places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        batch = Batch(tokens, targets, ones.astype(np.float32), ones, places)
        while True:
            position = dataclasses.replace(position, row=position.row + len(tokens))
            yield HostBatch(batch, position, digest(self._rows))


@pytest.mark.slow
def test_an_import_is_tuned_and_exported(whole, generator, tmp_path):
    """By corrections and the head, on 8 devices; what was frozen goes back bit for bit."""
    home, run = whole, load_run(whole / "out")
    config = dataclasses.replace(
        run.experiment,
        workdir=str(tmp_path / "tuned"),
        init_from=str(home / "out"),
        tokenizers=TokenizersConfig(text=str(home / "out/text"), image=str(home / "out/vqgan")),
        model=dataclasses.replace(run.experiment.model, lora_rank=2, dtype="float32"),
        optim=OptimConfig(peak_lr=0.01, warmup_steps=1, weight_decay=0.0, trained="lora|^head"),
        train=TrainConfig(steps=3, log_every=1, validate_every=0),
        data=DataConfig(batch=4),
        mesh=MeshConfig(data=1, fsdp=4, tensor=2),
    )
    stream = Rows(np.random.default_rng(0).integers(20, cases.VOCAB, (4, 13)).astype(np.int32))
    streams = {"train": stream, "validation": stream}
    train(DecoderLearner(config, generator.vocab, streams))
    losses = [line["loss"] for line in read_metrics(config.run_dir)]
    assert losses == sorted(losses, reverse=True)
    assert loading.load(config.run_dir).generate("a red fox", seed=1).image is not None
    hf_chameleon.export(config.run_dir, tmp_path / "back")
    before, after = {}, {}
    for folder, tensors in ((home / "in", before), (tmp_path / "back", after)):
        for file in folder.glob("*.safetensors"):
            tensors |= safetensors.numpy.load_file(file)
    assert before.keys() == after.keys()
    tuned = {key for key in before if (before[key] != after[key]).any()}
    assert tuned == {key for key in before if "_proj.weight" in key or key == "lm_head.weight"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells the memory")
def test_memory_of_an_import_is_that_of_its_parameters(tmp_path):
    """On 8 devices, in a process of its own."""
    words = [sys.executable, "-m", "tests.interop.memory", str(tmp_path / "x"), "8", "512", "16000"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["devices"] == 8
    assert found["loading"] <= 1.5 * found["parameters"]
    assert found["converting"] <= 0.5 * found["parameters"]
