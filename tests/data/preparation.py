"""A small folder of images, and its preparation in a process of its own.

    python -m tests.data.preparation FOLDER OUT [BEAM OPTION …]

FOLDER is made by `write`; OUT gets the bank and the corpus.
"""

import dataclasses
import json
import sys
from pathlib import Path

import PIL.Image

from cm3jax import testing
from cm3jax.config import CM3Config, DataConfig, Experiment, TokenizersConfig
from cm3jax.data.prepare import prepare
from cm3jax.data.runners import Beam, InProcess
from launch.tools import make_tools


def write(path: Path, records: int) -> Path:
    """An untrained chain, and a folder of so many images, every seventh of them broken."""
    testing.write_chain(path / "chain", bank_size=2)
    folder = path / "folder"
    folder.mkdir()
    lines = []
    for number, picture in enumerate(testing.pictures(records)):
        file = folder / f"{number}.png"
        PIL.Image.fromarray(picture).save(file)
        if number % 7 == 3:
            file.write_bytes(file.read_bytes()[:100])
        caption = f"{testing.CAPTIONS[number % 4]} {number // 4}"
        lines.append(json.dumps({"file": file.name, "caption": caption, "licence": "MIT"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return path


def experiment(path: Path, out: Path, shard: int) -> Experiment:
    """What is to be prepared of what `write` made."""
    base, chain = testing.experiment(), path / "chain"
    return dataclasses.replace(
        base,
        tokenizers=TokenizersConfig(text=f"{chain}/text", image=f"{chain}/vqgan"),
        retrieval=dataclasses.replace(
            base.retrieval, encoder=f"{chain}/clip", relevance_cut=1.0, views=2
        ),
        cm3=CM3Config(max_masks=6),
        data=DataConfig(
            source=f"{path}/folder",
            image_size=16,
            corpus=f"{out}/corpus",
            bank=f"{out}/bank",
            shard=shard,
        ),
    )


def main() -> None:
    path, out, shard, *options = sys.argv[1:]
    config = experiment(Path(path), Path(out), int(shard))
    tools = make_tools(config)
    engine = Beam(make_tools, options) if options else InProcess(tools)
    prepare(config, tools, lambda line: print(line, flush=True), engine)


if __name__ == "__main__":
    main()
