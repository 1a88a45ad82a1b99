"""An encoder-decoder from a folder of images to `launch.generate`, by the real parts."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

import cm3jax
from cm3jax import testing
from cm3jax.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimConfig,
    PartiConfig,
    TrainConfig,
)
from cm3jax.data.prepare import prepare
from cm3jax.data.tokenize import Tools
from cm3jax.errors import UserError
from cm3jax.generation.prompts import picture_prompt
from cm3jax.learners import clip
from cm3jax.learners.parti import PartiLearner
from cm3jax.train import train
from launch import generate

pytestmark = pytest.mark.slow

GREEDY = ("--temperature", "0")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """`parti`, trained on four captions and their images, each many times."""
    path = tmp_path_factory.mktemp("chain")
    testing.write_chain(path, bank_size=2)
    lines = []
    for number, picture in enumerate(testing.pictures(4)):
        PIL.Image.fromarray(picture).save(path / f"{number}.png")
    for number in range(51):
        line = {"file": f"{number % 4}.png", "caption": testing.CAPTIONS[number % 4]}
        lines.append(json.dumps(line | {"split": "validation" if number == 49 else "train"}))
    (path / "captions.jsonl").write_text("\n".join(lines))
    base = testing.experiment()
    experiment = dataclasses.replace(
        base,
        name="tiny/parti",
        learner="parti",
        workdir=str(path / "parti"),
        tokenizers=dataclasses.replace(
            base.tokenizers, text=str(path / "text"), image=str(path / "vqgan")
        ),
        parti=PartiConfig(1, text_tokens=40, drop_captions=0.1),
        data=DataConfig(
            source=str(path),
            image_size=16,
            corpus=str(path / "corpus"),
            bank=str(path / "bank"),
            batch=8,
        ),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=10, weight_decay=0.0),
        train=TrainConfig(steps=300, log_every=300, validate_every=300, validation_batches=1),
        checkpoint=CheckpointConfig(every=300),
        mesh=MeshConfig(data=1),
    )
    tools = Tools(testing.text_tokenizer(), testing.image_tokenizer(), clip.load(path / "clip"))
    prepare(experiment, tools, lambda line: None)
    train(PartiLearner.from_corpus(experiment))
    return path


@pytest.fixture
def call(chain, tmp_path):
    """Run the command; the lines of `samples.jsonl`."""

    def run(*words):
        words = [word.replace("X.PNG", str(chain / "0.png")) for word in words]
        generate.command([*words, "--run", str(chain / "parti"), "--out", str(tmp_path / "out")])
        log = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
        return [json.loads(line) for line in log]

    return run


def test_a_trained_encoder_decoder_draws_what_it_was_shown(call):
    vocab = testing.vocab()
    codes = testing.image_tokenizer().encode(testing.pictures(4)) + vocab.first_image
    assert len(np.unique(codes, axis=0)) == 4
    for options in (GREEDY, (*GREEDY, "--guidance", "cfg:1.5", "--samples", "2")):
        found = call("text", *testing.CAPTIONS, *options)
        assert [codes[line["prompt_id"]].tolist() for line in found] == [
            line["ids"] for line in found
        ]


def test_answers_are_weighed_code_by_code(chain):
    generator = cm3jax.load(str(chain / "parti"))
    requests = generator.requests(list(map(picture_prompt, testing.CAPTIONS)))
    codes = testing.image_tokenizer().encode(testing.pictures(4)) + testing.vocab().first_image
    mine = generator.token_logprobs(requests, list(codes))
    others = generator.token_logprobs(requests, list(np.roll(codes, 1, axis=0)))
    assert all(len(each) == codes.shape[1] and (each > np.log(0.5)).all() for each in mine)
    assert (np.sum(others, axis=1) < np.sum(mine, axis=1) - 1).all()
    with pytest.raises(UserError, match=r"has room for"):
        generator.token_logprobs(requests[:1], [np.zeros(codes.shape[1] + 1, np.int32)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a fox", "--docs", "X.PNG"], "reads no documents"),
        (["caption", "X.PNG"], "draws only images of texts"),
        (["edit", "a red fox <image:X.PNG>"], "draws only images of texts"),
        (["infill", "<image:X.PNG>", "--box", "0,0,8,8"], "draws only images of texts"),
        (["<image:X.PNG> a fox"], "draws only images of texts"),
        (["a fox " * 30], r"tokens long .* room for 0"),
    ],
)
def test_what_it_cannot_do_raises_user_error(call, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        call(*words)
    assert not (tmp_path / "out").exists()
