"""Foreign files with a value or some bytes changed at random: read, or refused in a sentence."""

import json
import random

import pytest
import yaml

from cm3jax.errors import UserError
from cm3jax.interop import folders, hf_chameleon, hf_clip, taming_vqgan
from tests.interop import foreign

VALUES = [
    *(None, True, False, 0, -1, 1, 2**31, 2**70, 1.5, float("nan"), "", "x", "none", "silu"),
    *([], [1], ["a"], [[]], {}, {"a": 1}, {"type": "linear"}, [8, 8], [-1], [2**40], {"": None}),
]
BYTES = [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"3", b"[]", b"{}", b"\0" * 10, b"a: &x [*x]"]
COUNT = 50


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("fuzz")
    foreign.write_chameleon(home / "chameleon", "plain", shards=2)
    foreign.write_clip(home / "clip", "patch-8")
    foreign.write_vqgan(home / "vqgan")
    return home


def read_chameleon(home):
    return hf_chameleon.read_checkpoint(home / "chameleon")


def read_clip(home):
    return hf_clip.read_clip_config(home / "clip")


def read_vqgan(home):
    return taming_vqgan.read_vqgan(home / "vqgan/vqgan.safetensors", home / "vqgan/vqgan.yaml")


def read_tensors(home):
    found = folders.read_tensors(home / "chameleon") | folders.read_tensors(home / "clip")
    return [tensor.read(...) for tensor in found.values()]


def paths(value, path=()):
    """Where the values of a JSON lie; of long lists and tables the first three."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items)[: None if len(value) < 100 else 3]:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from paths(inner, (*path, key))


def changed(content, draw):
    """A JSON or YAML with one value replaced."""
    value = yaml.safe_load(content)
    *parents, last = draw.choice(list(paths(value)))
    node = value
    for key in parents:
        node = node[key]
    node[last] = draw.choice(VALUES)
    return json.dumps(value).encode()


def broken(content, draw):
    """A safetensors file that was cut, or has another header or length."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    match draw.randrange(4):
        case 0:
            return content[: draw.randrange(len(content))]
        case 1:
            wrong = bytearray(header)
            wrong[draw.randrange(length)] = draw.randrange(256)
            return content[:8] + bytes(wrong) + rest
        case 2:
            size = draw.choice([0, 1, length - 1, length + 1, 2**63, len(content)])
            return size.to_bytes(8, "little") + header + rest
    header = changed(header, draw)
    return len(header).to_bytes(8, "little") + header + rest


@pytest.mark.parametrize(
    ("name", "read", "change"),
    [
        ("chameleon/config.json", read_chameleon, changed),
        ("chameleon/model.safetensors.index.json", read_chameleon, changed),
        ("chameleon/model-00001-of-00002.safetensors", read_tensors, broken),
        ("clip/config.json", read_clip, changed),
        ("clip/preprocessor_config.json", read_clip, changed),
        ("clip/model.safetensors", read_tensors, broken),
        ("vqgan/vqgan.yaml", read_vqgan, changed),
    ],
)
def test_spoilt_files_are_read_or_raise_user_error(home, name, read, change):
    draw, file = random.Random(name), home / name
    content = file.read_bytes()
    read(home)
    sentences = []
    for wrong in [*(change(content, draw) for _ in range(COUNT)), *BYTES]:
        file.write_bytes(wrong)
        try:
            read(home)
        except UserError as error:
            sentences.append(str(error))
    file.write_bytes(content)
    assert len(sentences) > COUNT / 2
    assert all("\n" not in sentence and len(sentence) < 600 for sentence in sentences)
