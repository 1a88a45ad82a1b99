"""Damaged and hostile folders: one sentence each, nothing written, nothing executed."""

import json
import pickle

import numpy as np
import pytest
import safetensors.numpy

from cm3jax.errors import UserError
from cm3jax.interop import hf_chameleon
from cm3jax.interop.vocabulary import read_map
from tests.interop import cases, foreign

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00003.safetensors"


class _Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def _truncate(folder):
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(content[: len(content) // 2])


def _cut_header(folder):
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:20])


def _pickle(folder):
    trap = pickle.dumps({"model.norm.weight": _Trap(folder / "sprung")})
    (folder / FIRST).write_bytes(trap)


def _pickle_alone(folder):
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    (folder / "weights.pt").write_bytes(pickle.dumps(_Trap(folder / "sprung")))


def _pickle_as_tensors(folder):
    _pickle_alone(folder)
    (folder / "weights.pt").rename(folder / "pytorch_model.bin")


def _nothing(folder):
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()


def _outside(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "../in/" + FIRST
    (folder / INDEX).write_text(json.dumps(index))


def _bare_index(folder):
    (folder / INDEX).write_text('{"weight_map": 3}')


def _no_shard(folder):
    (folder / FIRST).unlink()


def _tensors(change):
    def apply(folder):
        tensors = safetensors.numpy.load_file(folder / FIRST)
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / FIRST)
        index = json.loads((folder / INDEX).read_text())
        others = {k: v for k, v in index["weight_map"].items() if v != FIRST}
        index["weight_map"] = others | dict.fromkeys(tensors, FIRST)
        (folder / INDEX).write_text(json.dumps(index))

    return apply


@_tensors
def _missing(tensors):
    tensors.pop(min(tensors))


@_tensors
def _unknown(tensors):
    tensors["model.layers.7.surprise"] = np.ones(3, np.float32)


@_tensors
def _shape(tensors):
    tensors[min(tensors)] = np.ones((3, 5), np.float32)


@_tensors
def _integers(tensors):
    key = min(tensors)
    tensors[key] = np.ones(tensors[key].shape, np.int32)


def _stray(folder):
    tensors = safetensors.numpy.load_file(folder / FIRST)
    tensors["stray"] = np.ones(3, np.float32)
    safetensors.numpy.save_file(tensors, folder / FIRST)


def _config(**fields):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return apply


def _config_text(text):
    return lambda folder: (folder / "config.json").write_text(text)


def _no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def _bad_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')


def _tokenizer(change):
    def apply(folder):
        values = json.loads((folder / "tokenizer.json").read_text())
        change(values["model"]["vocab"])
        (folder / "tokenizer.json").write_text(json.dumps(values))

    return apply


@_tokenizer
def _swapped(vocab):
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


@_tokenizer
def _renamed(vocab):
    vocab["é"] = vocab.pop("c")


def _processor(**values):
    text = json.dumps({"image_processor": values})
    return lambda folder: (folder / "processor_config.json").write_text(text)


def _deep(name):
    return lambda folder: (folder / name).write_text("[" * 100_000)


def _not_utf8(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe{}")


FAULTS = {
    "truncated": (_truncate, "is damaged"),
    "cut header": (_cut_header, "damaged or no safetensors"),
    "pickle": (_pickle, "damaged or no safetensors"),
    "pickle alone": (_pickle_alone, "could run code"),
    "pickle as tensors": (_pickle_as_tensors, "could run code|torch is not installed"),
    "nothing": (_nothing, "holds neither"),
    "outside": (_outside, "no file of this folder"),
    "bare index": (_bare_index, "no weight_map"),
    "no shard": (_no_shard, "does not exist"),
    "missing": (_missing, "has no"),
    "unknown": (_unknown, "surprise, which this model does not"),
    "shape": (_shape, r"shape \[3, 5\]"),
    "integers": (_integers, "is of I32"),
    "stray": (_stray, "disagree about stray"),
    "config: nothing": (_config_text(""), "is not JSON"),
    "config: list": (_config_text("[]"), "not a JSON object"),
    "config: other": (_config(model_type="llama"), "model_type='llama'"),
    "config: text": (_config(hidden_size="big"), "hidden_size is 'big'"),
    "config: width": (_config(hidden_size=30, num_attention_heads=4), "does not divide"),
    "config: layers": (_config(num_hidden_layers=3), r"no model\.layers\.2"),
    "config: rope": (_config(rope_theta=500000.0), "rope_theta"),
    "config: bias": (_config(attention_bias=True), "attention_bias"),
    "config: map": (_config(vocabulary_map={}), "no <pad>"),
    "config: vq": (_config(vq_config={"resolution": "x"}), "resolution is 'x'"),
    "config: codes": (_config(vq_config=cases.VQ | {"num_embeddings": 15}), "16 image codes"),
    "config: deep": (_deep("config.json"), "config.json is nested too deep"),
    "index: deep": (_deep(INDEX), "index.json is nested too deep"),
    "tokenizer": (_bad_tokenizer, "not a tokenizer.json"),
    "tokenizer: deep": (_deep("tokenizer.json"), "not a tokenizer.json"),
    "tokenizer: bytes": (_not_utf8, "as UTF-8"),
    "tokenizer: swapped": (_swapped, "is 'a' in the vocabulary_map and 'b' in the text tokenizer"),
    "tokenizer: renamed": (_renamed, "is 'c' in the vocabulary_map and 'é' in the text tokenizer"),
    "processor: size": (_processor(size={"shortest_edge": 8}), "its size is not Chameleon's"),
    "processor: mean": (_processor(image_mean=[0.5] * 3), "its image_mean is not Chameleon's"),
    "processor: filter": (_processor(resample=3), "its resample is not Chameleon's"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return foreign.write_chameleon(tmp_path_factory.mktemp("sound") / "in", "plain")


@pytest.mark.parametrize("name", FAULTS)
def test_a_spoilt_folder_raises_user_error_and_nothing_is_written(sound, tmp_path, name):
    spoil, match = FAULTS[name]
    source = tmp_path / "in"
    source.mkdir()
    for file in sound.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    spoil(source)
    with pytest.raises(UserError, match=match) as error:
        hf_chameleon.convert(source, tmp_path / "out", None, source / "config.json")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not (source / "sprung").exists()


def test_an_existing_folder_is_not_overwritten(sound, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        hf_chameleon.convert(sound, tmp_path / "out", None, sound / "config.json")


def test_spoilt_vocabulary_maps_raise_user_error():
    names = cases.vocabulary_map()
    faults = [
        (names | {"extra": names["a"]}, "one id to two"),
        (names | {"extra": 99}, "outside"),
        (names | {"extra": "1"}, "not integers"),
        ({k: v for k, v in names.items() if k != "<eoss>"}, "no <eoss>"),
        ({k: v for k, v in names.items() if k != "IMGIMGDZ"}, "no image code 3"),
        ({k: v for k, v in names.items() if not k.startswith("IMG")}, "no image code 0"),
        ({k: v for k, v in names.items() if len(k) > 1 and k != "<unk>"}, "none for text"),
    ]
    for wrong, match in faults:
        with pytest.raises(UserError, match=match):
            read_map(wrong, cases.VOCAB, 8)


def test_the_map_decides_every_id():
    names = cases.vocabulary_map()
    vocabulary = read_map(names, cases.VOCAB, 8)
    config, ids = vocabulary.config, vocabulary.ids.tolist()
    assert sorted(ids) == list(range(cases.VOCAB))
    assert ids[:4] == [names[n] for n in ("<pad>", "</s>", "<racm3:break>", "<eoss>")]
    assert ids[4:9] == [names[f"<sentinel:{i}>"] for i in range(5)]
    assert ids[config.specials + 12] == names["IMGIMGBCZ"]
    assert names["a"] in vocabulary.text_ids
    assert (config.sentinels, config.image_codes, config.text_pieces) == (5, 16, 39)
    unnamed = {k: v for k, v in names.items() if not k.startswith("<sentinel")}
    assert read_map(unnamed, cases.VOCAB, 8).config.sentinels == 5 + 8  # all spare ids
