"""What a small model can do, for claims that compare several: it draws, captions and fills in.

With the answers come the nats per id of the right answer, which tell models apart that cannot
give it yet.
"""

import random
from collections.abc import Sequence

import numpy as np

from cm3jax.config import Experiment
from cm3jax.emblems import ProbePrompt, caption, confirms_batch, confirms_emblems, draw_scene, tells
from cm3jax.emblems.looks import catalogue
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.probe_prompts import LOWER_HALF
from cm3jax.emblems.sample import at_home, frequent, with_emblem
from cm3jax.evaluate.chance import of_another_answer
from cm3jax.evaluate.protocol import Protocol, Score
from cm3jax.generation.answers import image_of
from cm3jax.generation.prompts import caption_prompt, infill_prompt, picture_prompt
from cm3jax.generation.requests import PromptRequest, ShownDocuments
from cm3jax.retrieval.retriever import Retrieved
from cm3jax.shapes import Float, Int, UInt8
from experiments.claims.harness import Bench, content

_SPLITS = {
    "heldout": "memory-only emblems, at places and in scenes that no document shows",
    "known": "training's emblems by their frequency there, in scenes that no split shows",
    "scene": "scenes that no other split shows",
    "caption": "pictures that no other split shows",
    "infill": "pictures that no other split shows",
    "word": "words that no other split shows",
    "palm": "palms that every split shows",
}
_EXACT = "emblems.confirms: shows the exact scene"
_AFTER = "each after the true ones before it"

Every = list[list[ProbePrompt]]
"""The prompts of every seed."""


def questions(bench: Bench) -> dict[str, Every]:
    """The prompts that a model is evaluated with, by kind."""
    every = {kind: bench.asked(kind) for kind in ("heldout", "scene", "caption", "infill")}
    return every | {"known": known(bench)}


def known(bench: Bench) -> Every:
    """Prompts for emblems that training shows, as often as it shows them."""
    return [
        [_known(bench, seed * bench.prompts + index) for index in range(bench.prompts)]
        for seed in range(bench.seeds)
    ]


def _known(bench: Bench, index: int) -> ProbePrompt:
    rng, emblems = random.Random(f"claims known {index}"), catalogue(0, bench.emblems)
    number = frequent(rng, emblems)
    scene = at_home("prompts", lambda: with_emblem(rng, number, emblems))
    return ProbePrompt(
        f"known-{index}", "heldout", caption(scene), scene, draw_scene(scene, bench.size)
    )


class ModelEval:
    """One model and what has come of it so far.

    `name` begins the names of its scores, `every` are `questions`.
    """

    def __init__(self, name: str, bench: Bench, every: dict[str, Every]):
        self.name, self.bench, self.every = name, bench, every
        self.scores: dict[str, Score] = {}
        self.drawn: dict[str, UInt8[np.ndarray, "S B Y X 3"]] = {}
        """What it drew for every seed's prompts, by score."""

    @property
    def experiment(self) -> Experiment:
        """What trained the model."""
        return self.bench.experiment

    def run(self) -> None:
        """Ask for all that a model of its kind can do."""
        for kind in ("heldout", "known"):
            for count in sorted({0, self.experiment.retrieval.documents}):
                self.draw(kind, count)
        self.draw("scene", 0)
        # Parti reads only texts, and a causal model never saw what comes behind a gap.
        if self.experiment.learner == "decoder" and self.experiment.cm3.mean_masks:
            self._caption()
            self._infill()

    def retrieved(self, asked: Sequence[ProbePrompt], count: int) -> list[list[Retrieved]]:
        """The best documents for each prompt."""
        if not count:
            return [[] for _ in asked]
        return self.bench.generator.retrieve([prompt.text for prompt in asked], k=count)

    def draw(self, kind: str, count: int) -> None:
        """Images of texts, with `count` documents: right if the emblem is or, where no emblem is
        asked for, all of it.
        """
        every, name = self.every[kind], f"{kind}.docs_{count}"
        emblems = bool(every[0][0].scene.emblems)
        confirm = confirms_emblems if emblems else confirms_batch
        drawn, right, nats = [], [], []
        for seed, asked in enumerate(every):
            shown = self.retrieved(asked, count)
            drawn.append(self.bench.draw([prompt.text for prompt in asked], shown, seed))
            right.append(confirm(drawn[-1], [prompt.scene for prompt in asked]))
            nats.append(self._of_pictures(asked, shown))
        self.drawn[name] = np.stack(drawn)
        scenes = [prompt.scene.seen() for prompt in self._all(kind)]
        chance = 1 / QUARTERS**4 if emblems else of_another_answer(scenes)
        reader = "emblems.confirms_emblems: shows the emblem at its place" if emblems else _EXACT
        self._share(name, kind, right, chance, reader, count)
        whole = np.mean(nats, -1)
        if emblems:
            cells = [[list(prompt.scene.emblems[0].cells) for prompt in asked] for asked in every]
            own = np.take_along_axis(np.asarray(nats), np.asarray(cells), -1).mean(-1)
            self._mean(f"nats.{name}", kind, own, "the emblem's four codes", count)
            self._mean(f"nats.picture.{name}", kind, whole, "the picture's codes", count)
        else:
            self._mean(f"nats.{name}", kind, whole, "the picture's codes", count)

    def _of_pictures(
        self, asked: Sequence[ProbePrompt], shown: ShownDocuments | None
    ) -> list[Float[np.ndarray, " codes"]]:
        """Nats of each code of each prompt's image."""
        generator = self.bench.generator
        requests = generator.requests([picture_prompt(prompt.text) for prompt in asked], shown)
        return self._nats(requests, self._codes(asked))

    def _caption(self) -> None:
        generator, right, nats = self.bench.generator, [], []
        for seed, asked in enumerate(self.every["caption"]):
            images = np.stack([prompt.image for prompt in asked])
            texts = [group[0].text or "" for group in generator.caption(images, seed=seed)]
            right.append([tells(t, p.scene) for t, p in zip(texts, asked, strict=True)])
            requests = generator.requests(list(map(caption_prompt, images)))
            first, end = generator.vocab.first_text, generator.vocab.eoss
            told = [[*(first + i for i in generator.text.encode(p.text)), end] for p in asked]
            nats.append([each.mean() for each in self._nats(requests, map(np.asarray, told))])
        chance = of_another_answer([prompt.scene.told() for prompt in self._all("caption")])
        reader = "emblems.tells: asserts the exact scene"
        self._share("caption", "caption", right, chance, reader)
        self._mean("nats.caption", "caption", nats, "the caption and its end")

    def _infill(self) -> None:
        """The lower half drawn again, from the caption and the upper half."""
        generator, right, nats = self.bench.generator, [], []
        for seed, asked in enumerate(self.every["infill"]):
            images, texts = np.stack([p.image for p in asked]), [prompt.text for prompt in asked]
            masks = np.zeros(images.shape[:3], bool)
            masks[:, self.bench.size // 2 :] = True
            found = generator.infill(texts, images, masks, seed=seed)
            filled = np.stack([image_of(group[0]) for group in found])
            right.append(confirms_batch(filled, [prompt.scene for prompt in asked]))
            holes = zip(texts, images, masks, strict=True)
            requests = generator.requests([infill_prompt(*each) for each in holes])
            lower = self._codes(asked)[:, list(LOWER_HALF)]
            nats.append([each.mean() for each in self._nats(requests, lower)])
        halves = [p.image[self.bench.size // 2 :].tobytes() for p in self._all("infill")]
        self._share("infill", "infill", right, of_another_answer(halves), _EXACT)
        self._mean("nats.infill", "infill", nats, "the lower half's codes")

    def _codes(self, asked: Sequence[ProbePrompt]) -> Int[np.ndarray, "B codes"]:
        """Ids of the prompts' own images."""
        generator = self.bench.generator
        return generator.image.encode([p.image for p in asked]) + generator.vocab.first_image

    def _nats(self, requests: Sequence[PromptRequest], answers) -> list[np.ndarray]:
        return [-each for each in self.bench.generator.token_logprobs(requests, list(answers))]

    def _all(self, kind: str) -> list[ProbePrompt]:
        return [prompt for asked in self.every[kind] for prompt in asked]

    def _share(self, name: str, kind: str, right, chance: float, reader: str, count: int = 0):
        name, verdicts = f"{self.name}.{name}", np.asarray(right)
        protocol = self._protocol(kind, reader, count)
        self.scores[name] = self.bench.share(name, verdicts, chance, protocol)

    def _mean(self, name: str, kind: str, nats, what: str, count: int = 0):
        name, values = f"{self.name}.{name}", np.asarray(nats)
        protocol = self._protocol(kind, f"nats per id of {what}, {_AFTER}", count)
        self.scores[name] = self.bench.mean(name, values, protocol)

    def _protocol(self, kind: str, reader: str, count: int) -> Protocol:
        bank = self.bench.generator.retriever.bank if count else None
        return self.bench.protocol(
            f"emblems {kind}",
            content(self.every[kind]),
            _SPLITS[kind.partition(".")[0]],
            reader,
            bank=bank,
            retrieved=count,
            documents=f"live retrieval by the prompt's text, best {count}" if count else "none",
        )
