"""A process that converts a random Chameleon folder and loads it onto a mesh of 8 devices.

    python -m tests.interop.memory FOLDER LAYERS WIDTH VOCAB

Prints one JSON: bytes of the parameters, and the peak of anonymous memory above what the process
held before, while converting and while loading. `FOLDER` must not exist; it is written here. About
300 M parameters: LAYERS 16, WIDTH 1024, VOCAB 32000.
"""

import json
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "NPROC": "32"}

import jax
import numpy as np

from cm3jax.checkpoint import load_run
from cm3jax.config import MeshConfig
from cm3jax.interop import chameleon_config, folders, hf_chameleon, taming_vqgan
from cm3jax.interop.layout import Place
from cm3jax.interop.vocabulary import read_map
from cm3jax.io import safetensors_file
from cm3jax.io.experiment_json import read_experiment
from cm3jax.io.files import write_json
from cm3jax.model.decoder import Decoder
from cm3jax.partition import make_mesh
from cm3jax.training.state import plan_layout
from tests.interop import cases, foreign


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


@contextmanager
def peak() -> Iterator[list[int]]:
    """A list that holds the peak of anonymous memory above its start, when the block is over."""
    before, found, stop = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            found[0] = max(found[0], anonymous() - before)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def write_random(folder: Path, layers: int, width: int, vocab: int) -> int:
    """A folder of noise in files of several layers; returns the bytes of its decoder."""
    names = cases.vocabulary_map()
    names |= {f"<text:{i}>": i for i in range(len(names), vocab)}
    config = cases.CASES["swin"].config | {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 11 * width // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocabulary_map": names,
    }
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    model = chameleon_config.Foreign.read(config, "it").decoder("it", "float32")
    image = taming_vqgan.read_vqgan_config(config["vq_config"], "it")
    places = hf_chameleon.decoder_places(model, read_map(names, vocab, image.grid).ids)
    images = taming_vqgan.vqgan_places(image, "model.vqmodel.", decoder=False)
    outputs = {
        key: safetensors_file.Output("F32", place.foreign_shapes[0], partial(_noise, key, place))
        for place in [*places, *images]
        for key in place.keys
    }
    folders.write_tensors(folder, outputs)
    text = json.loads(foreign_tokenizer(folder))
    text["model"]["vocab"] |= {name: i for name, i in names.items() if name.startswith("<text:")}
    write_json(folder / "tokenizer.json", text)
    return sum(4 * int(np.prod(place.shape)) for place in places)


def _noise(key: str, place: Place) -> list[np.ndarray]:
    return [cases.weights(key, place.foreign_shapes[0])]


def foreign_tokenizer(folder: Path) -> str:
    """A tokenizer.json of the letters."""
    foreign.write_tokenizer(folder / "tokenizer.json")
    return (folder / "tokenizer.json").read_text()


def main() -> None:
    """Convert and load, and print what it took."""
    folder, (layers, width, vocab) = Path(sys.argv[1]), map(int, sys.argv[2:5])
    size = write_random(folder / "in", layers, width, vocab)
    with peak() as converting:
        hf_chameleon.convert(folder / "in", folder / "out", None, folder / "in" / "config.json")
    experiment = read_experiment(folder / "out" / "config.json")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    model = Decoder(experiment.model, vocab)
    row = jax.numpy.zeros((1, 4), jax.numpy.int32)
    init = lambda key: model.init(key, row, row, row)  # noqa: E731
    learner = types.SimpleNamespace(experiment=experiment, init=init)
    with jax.set_mesh(mesh):
        layout = plan_layout(learner, mesh)
        with peak() as loading:
            run = load_run(folder / "out", lambda _: layout.abstract)
            jax.block_until_ready(run.variables)
    shards = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(run.variables)}
    report = {"parameters": size, "converting": converting[0], "loading": loading[0]}
    print(json.dumps(report | {"devices": max(shards)}))


if __name__ == "__main__":
    main()
