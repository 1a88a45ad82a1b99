"""What a decoder of emoji can do with names and looks that training never showed.

Every answer is sampled freely, once per prompt, and judged by `cm3jax.emoji.reader`: a picture is
right if it shows the prompt's things at their places, on its ground: for a score that ends in
`.name` in whatever style, for one in `.look` in the prompt's.
"""

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.config import MeshConfig
from cm3jax.emoji.builder import open_examples
from cm3jax.emoji.prompts import EmojiPrompt, Kind, emoji_prompts
from cm3jax.emoji.reader import EmojiReader
from cm3jax.emoji.scene import Placed
from cm3jax.evaluate import chance
from cm3jax.evaluate.protocol import (
    Protocol,
    Score,
    by_licence,
    code_version,
    licensed_share,
    sampling,
    tree_fingerprint,
)
from cm3jax.evaluate.results import Cell, Figure, worst_and_best
from cm3jax.generation import loading
from cm3jax.generation.requests import Documents
from cm3jax.io.files import digest
from cm3jax.retrieval.bank import BankDocument

FIGURES = 8
"""Prompts of a kind that the report shows: the first wrong answers, then the first right ones."""

_SPLITS: dict[Kind, str] = {
    "heldout": "things that training never shows, in scenes that no document shows",
    "flag": "flags that training never shows, in scenes that no document shows",
    "style": "a style that training never shows of its thing, in scenes that no document shows",
    "pair": "two things each that training never shows, in scenes that no document shows",
    "together": "two things each that training never shows together",
}


class EmojiExam:
    """One model, its prompts, and what has come of them so far."""

    def __init__(
        self,
        run_dir: epath.PathLike,
        bank: epath.PathLike = "",
        count: int = 200,
        seed: int = 0,
        say: Callable[[str], None] = print,
        mesh: MeshConfig | None = None,
        keep: epath.PathLike = "",
    ):
        """`run_dir`, `bank` and `mesh` are as in `cm3jax.load`, `seed` is the sampling's.

        Samples are kept in the folder `keep`, and those that lie there not drawn again. Raises
        `UserError` where the run, its companions, the bank or the archives are missing or don't
        match.
        """
        run = load_run(run_dir)
        data = run.experiment.data
        self._examples = open_examples(data.raw, run.experiment.seed, data.image_size)
        self._reader = EmojiReader(self._examples.catalogue, data.image_size)
        self._generator = loading.load(run_dir, bank, mesh)
        self._bank = self._generator.retriever.bank
        self._count, self._seed, self._say = count, seed, say
        self._asked: dict[Kind, list[EmojiPrompt]] = {}
        self._weights = digest(
            tree_fingerprint(run.variables),
            self._generator.text.fingerprint,
            self._generator.image.fingerprint,
            self._generator.retriever.encoder.fingerprint,
        )
        if keep:
            origin = digest(self._weights, code_version())
            self._generator = self._generator.cached_in(keep, origin)
        self.scores: dict[str, Score] = {}
        self.figures: list[Figure] = []

    def take(self, documents: Sequence[int] = (0, 1, 2)) -> None:
        """All scores, with these numbers of retrieved documents."""
        self.reconstruct("heldout")
        self.retrieve("heldout")
        for kind in get_args(Kind):
            self.draw_with_retrieved(kind, documents)
        self.draw_with_chosen("heldout")
        self.caption("heldout")

    def draw_with_retrieved(self, kind: Kind, numbers: Sequence[int]) -> None:
        """Pictures with live documents in front."""
        asked = self._prompts(kind)
        texts = [prompt.text for prompt in asked]
        cells: list[list[Cell]] = [[] for _ in asked]
        right: list[bool] = []
        for k in numbers:
            shown = self._generator.retrieve(texts=texts, k=k) if k else None
            how = f"live retrieval by the prompt's text, best {k}" if k else "none"
            images, right = self._draw(f"{kind}.docs_{k}", asked, shown, k, how)
            for row, image in enumerate(images):
                cells[row].append(Cell.of(_documents(k), image, correct=right[row]))
        worst, best = worst_and_best(right, FIGURES // 2)
        for row in worst + best:
            truth = Cell.of("as it should be", asked[row].picture)
            self.figures.append(Figure(kind, texts[row], (*cells[row], truth)))

    def draw_with_chosen(self, kind: Kind) -> None:
        """The controls: documents chosen by name, of the size that the prompt asks for."""
        asked = self._prompts(kind)
        held = self._documents_by_look()
        mine = [self._looks_of(prompt, held) for prompt in asked]
        same = [
            [looks[prompt.scene.things[0].style]] for looks, prompt in zip(mine, asked, strict=True)
        ]
        self._draw(
            f"{kind}.same_style", asked, same, 1, "chosen by name: one in the prompt's style"
        )
        across = [row for row, looks in enumerate(mine) if len(looks) > 1]
        if across:
            others = [
                [next(ids for s, ids in mine[row].items() if s != asked[row].scene.things[0].style)]
                for row in across
            ]
            how = "chosen by name: one in another style than the prompt's"
            self._draw(f"{kind}.across_styles", [asked[r] for r in across], others, 1, how)
        both = []
        for row, (right,) in enumerate(same):
            (wrong,) = same[(row + 1) % len(same)]
            both.append([right, wrong] if row % 2 else [wrong, right])
        how = "chosen by name: one of the thing and one of another, either first"
        self._draw(f"{kind}.right_and_wrong", asked, both, 2, how)

    def caption(self, kind: Kind) -> None:
        """Names of things in pictures, told with the two documents that the picture finds."""
        asked = self._prompts(kind)
        images = np.stack([prompt.picture for prompt in asked])
        for k in (0, 2):
            shown = self._generator.retrieve(images=images, k=k) if k else None
            told = self._generator.caption(images, shown, seed=self._seed)
            right = [
                prompt.scene.things[0].noun.split(" ", 1)[-1] in group[0].text
                for prompt, group in zip(asked, told, strict=True)
            ]
            how = f"live retrieval by the picture, best {k}" if k else "none"
            guessed = self._reader.chance
            reader = "the text has the thing's name"
            self._score(f"{kind}.caption.docs_{k}", right, asked, guessed, k, how, reader)

    def retrieve(self, kind: Kind) -> None:
        """Whether the two best documents show the prompt's thing."""
        asked = self._prompts(kind)
        nouns = [prompt.scene.things[0].noun for prompt in asked]
        holders = dict.fromkeys(nouns, 0)
        for document in self._bank.documents():
            for noun in document.subjects:
                holders[noun] = holders.get(noun, 0) + 1
        hits = [chance.of_a_hit(holders[noun], len(self._bank), 2) for noun in nouns]
        guessed = float(np.mean(hits))
        queries = {
            "text": {"texts": [prompt.text for prompt in asked]},
            "image": {"images": [prompt.picture for prompt in asked]},
        }
        for modality, query in queries.items():
            found = self._generator.retrieve(**query, k=2)
            right = [
                any(noun in document.meta.subjects for document in documents)
                for noun, documents in zip(nouns, found, strict=True)
            ]
            how = f"live retrieval by the prompt's {modality}, best 2"
            self._score(
                f"{kind}.hit_2.{modality}", right, asked, guessed, 2, how, "the bank's subjects"
            )

    def reconstruct(self, kind: Kind) -> None:
        """The ceiling: what the image tokenizer leaves to be read."""
        asked = self._prompts(kind)
        codes = self._generator.image.encode([prompt.picture for prompt in asked])
        self._judge(f"{kind}.reconstruction", self._generator.image.decode(codes), asked, 0, "none")

    # ------------------------------------------------------------------------------------ parts

    def _prompts(self, kind: Kind) -> list[EmojiPrompt]:
        if kind not in self._asked:
            self._asked[kind] = emoji_prompts(self._examples, kind, self._count)
        return self._asked[kind]

    def _documents_by_look(self) -> dict[tuple[str, str, str], BankDocument]:
        """The bank's document of each thing, style and size."""
        documents = {document.key: document for document in self._bank.documents()}
        held = {}
        for index in range(self._examples.bank_size):
            example = self._examples.example("bank", index)
            if example.key in documents:
                placed: Placed = example.scene.things[0]
                held[placed.noun, placed.style, placed.size] = documents[example.key]
        return held

    def _looks_of(self, prompt: EmojiPrompt, held: dict) -> dict[str, np.ndarray]:
        """Ids of the documents of a prompt's thing, at its size, by style."""
        (placed,) = prompt.scene.things
        return {
            style: document.ids
            for (noun, style, size), document in held.items()
            if (noun, size) == (placed.noun, placed.size)
        }

    def _draw(
        self, name: str, asked: Sequence[EmojiPrompt], shown: Documents | None, k: int, how: str
    ) -> tuple[list[np.ndarray], list[bool]]:
        texts = [prompt.text for prompt in asked]
        found = self._generator.text_to_image(texts, shown, seed=self._seed)
        images = [group[0].image for group in found]
        return images, self._judge(name, np.stack(images), asked, k, how)

    def _judge(
        self, name: str, images: np.ndarray, asked: Sequence[EmojiPrompt], k: int, how: str
    ) -> list[bool]:
        scenes = [prompt.scene for prompt in asked]
        guessed = float(np.mean([self._reader.chance ** len(scene.things) for scene in scenes]))
        reader = f"emoji.Reader: nearest of {self._reader.candidates} pictures, by "
        named = self._reader.shows(images, scenes)
        self._score(f"{name}.name", named, asked, guessed, k, how, f"{reader}name")
        styled = self._reader.shows(images, scenes, styles=True)
        self._score(f"{name}.look", styled, asked, guessed, k, how, f"{reader}name and style")
        return named

    def _score(
        self,
        name: str,
        verdicts: Sequence[bool],
        asked: Sequence[EmojiPrompt],
        guessed: float,
        retrieved: int,
        documents: str,
        reader: str,
    ) -> None:
        searched = self._generator.retriever.config if retrieved else None
        size, kind = self._examples.size, asked[0].kind
        protocol = Protocol(
            prompts=f"emoji {kind}, dataset seed {self._examples.seed}, {size} pixels",
            prompts_hash=digest(*(part for p in asked for part in (p.text, p.picture))),
            split=_SPLITS[kind],
            retrieved=retrieved,
            documents=documents,
            bank=f"{len(self._bank)} documents, {self._bank.fingerprint}",
            **sampling(self._generator.decode, searched),
            samples=1,
            seed=self._seed,
            licensed_share=licensed_share(self._bank.manifest["licences"]),
            licences=by_licence(self._bank.manifest["licences"]),
            reader=reader,
            weights=self._weights,
            code_version=code_version(),
        )
        score = self.scores[name] = Score.share(verdicts, guessed, protocol)
        self._say(f"{name}: {score.value:.3f} of {score.n}, chance {guessed:.2g}")


def _documents(count: int) -> str:
    return "no document" if not count else f"{count} document{'s' if count > 1 else ''}"
