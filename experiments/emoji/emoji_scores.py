"""What a decoder of emoji can do with names and looks that training never showed.

Every answer is sampled freely, once per prompt, and judged by `cm3jax.emoji.reader`: an image is
right if it shows the prompt's things at their places, on its ground: for a score that ends in
`.name` in whatever style, for one in `.look` in the prompt's.
"""

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from etils import epath

from cm3jax.config import CacheType, MeshConfig, WeightType
from cm3jax.emoji.builder import open_examples
from cm3jax.emoji.draw import window
from cm3jax.emoji.looks import GRID, SIDES
from cm3jax.emoji.prompts import EmojiKind, EmojiPrompt, emoji_prompts
from cm3jax.emoji.reader import EmojiReader
from cm3jax.emoji.scene import Placed, caption_names
from cm3jax.evaluate import chance
from cm3jax.evaluate.exam import NOTHING, Exam, Examinee, Given, Questions
from cm3jax.evaluate.results import Cell
from cm3jax.generation.answers import image_of
from cm3jax.retrieval.bank import BankDocument

_SPLITS: dict[EmojiKind, str] = {
    "heldout": "things that training never shows, in scenes that no document shows",
    "flag": "flags that training never shows, in scenes that no document shows",
    "style": "a style that training never shows of its thing, in scenes that no document shows",
    "pair": "two things each that training never shows, in scenes that no document shows",
    "together": "two things each that training never shows together",
}

Looks = dict[tuple[str, str, str], BankDocument]
"""The bank's document of each thing, style and size."""


class EmojiExam(Exam):
    """The exam of one model over `count` prompts of each kind.

    `run_dir`, `bank` and `mesh` are as in `cm3jax.load`, `seed` is the sampling's. Samples are kept
    in the folder `keep`, and those that are there not drawn again. Raises `UserError` where the
    run, its companions, the bank or the archives are missing or don't match.
    """

    def __init__(
        self,
        run_dir: epath.PathLike,
        bank: epath.PathLike = "",
        count: int = 200,
        seed: int = 0,
        say: Callable[[str], None] = print,
        mesh: MeshConfig | None = None,
        keep: epath.PathLike = "",
        weights: WeightType = "",
        cache: CacheType = "",
    ):
        examinee = Examinee.load(
            run_dir, bank, mesh, keep, source="emoji", weights=weights, cache=cache
        )
        super().__init__(examinee, seed, say, examinee.generator.retriever.bank)
        data = examinee.experiment.data
        self._examples = open_examples(data.raw, examinee.experiment.seed, data.image_size)
        self._reader = EmojiReader(self._examples.catalogue, data.image_size)
        self._count = count
        self._asked: dict[EmojiKind, Questions[EmojiPrompt]] = {}

    def take(self, documents: Sequence[int] = (0, 1, 2)) -> None:
        """All scores, with these numbers of retrieved documents."""
        heldout = self._questions("heldout")
        self._judge("heldout.reconstruction", self.reconstruct(heldout), heldout, drawn=False)
        nouns = [prompt.scene.things[0].noun for prompt in heldout.items]
        self.find("heldout.hit_2", heldout, nouns, "the bank's subjects")
        self.find_looks("heldout")
        for kind in get_args(EmojiKind):
            self.draw_with_retrieved(kind, documents)
        self.draw_with_chosen("heldout")
        self.infill("heldout")
        self.caption("heldout")

    def find_looks(self, kind: EmojiKind) -> None:
        """Whether one of the two best documents by text shows the prompt's thing in its style and
        size: only from such a one can its codes be copied."""
        asked, held = self._questions(kind), self._documents_by_look()
        wanted = [held[_look_of(prompt)].key for prompt in asked.items]
        given = self.retrieve(2, asked)
        right = [
            key in {document.key for document in given.retrieved_for(place)}
            for place, key in enumerate(wanted)
        ]
        guessed = chance.of_a_hit(1, len(held), 2)
        reader = "the bank's document of the thing, style and size"
        name = f"{kind}.hit_2_look.text"
        self.score(name, right, guessed, asked.prompts, reader, given, drawn=False)

    def draw_with_retrieved(self, kind: EmojiKind, numbers: Sequence[int]) -> None:
        """Images with live documents in front."""
        asked = self._questions(kind)
        cells: list[list[Cell]] = [[] for _ in asked.items]
        right: list[bool] = []
        for count in numbers:
            given = self.retrieve(count, asked)
            images, right = self._draw(f"{kind}.docs_{count}", asked, given)
            for own, image, correct in zip(cells, images, right, strict=True):
                own.append(Cell.of(given.label, image, correct=correct))
        truth = [Cell.of("as it should be", prompt.image) for prompt in asked.items]
        self.show(kind, right, asked.texts, lambda place: (*cells[place], truth[place]))

    def draw_with_chosen(self, kind: EmojiKind) -> None:
        """The controls: documents chosen by name, of the size that the prompt asks for."""
        asked = self._questions(kind)
        held = self._documents_by_look()
        mine = [_looks_of(prompt, held) for prompt in asked.items]
        styles = [prompt.scene.things[0].style for prompt in asked.items]
        one = self._one_of_same_style(asked)
        self._draw(f"{kind}.same_style", asked, one)
        across = [row for row, looks in enumerate(mine) if len(looks) > 1]
        if across:
            others = [
                [next(ids for style, ids in mine[row].items() if style != styles[row])]
                for row in across
            ]
            how = "chosen by name: one in another style than the prompt's"
            few = Questions(asked.name, asked.split, [asked.items[row] for row in across])
            self._draw(f"{kind}.across_styles", few, Given(others, 1, how))
        both = []
        same = one.documents or []
        for row, (right,) in enumerate(same):
            (wrong,) = same[(row + 1) % len(same)]
            both.append([right, wrong] if row % 2 else [wrong, right])
        how = "chosen by name: one of the thing and one of another, either first"
        self._draw(f"{kind}.right_and_wrong", asked, Given(both, 2, how))

    def infill(self, kind: EmojiKind) -> None:
        """The thing drawn again in its masked place, from the caption, what is around it, and a
        document chosen by name.
        """
        asked = self._questions(kind)
        given, images = self._one_of_same_style(asked), asked.images
        masks = np.zeros(images.shape[:3], bool)
        for mask, prompt in zip(masks, asked.items, strict=True):
            (placed,) = prompt.scene.things
            side = SIDES[placed.size] * len(mask) // GRID
            mask[window(placed.corner, side, len(mask))] = True
        found = self.generator.infill(asked.texts, images, masks, given.documents, seed=self.seed)
        filled = np.stack([image_of(group[0]) for group in found])
        self._judge(f"{kind}.infill", filled, asked, given)

    def caption(self, kind: EmojiKind) -> None:
        """Names of things in images, told with the two documents that the image finds."""
        asked = self._questions(kind)
        for count in (0, 2):
            given = self.retrieve(count, asked, by="image")
            right = [
                caption_names(text, prompt.scene.things[0].noun)
                for prompt, text in zip(asked.items, self.captions(asked, given), strict=True)
            ]
            reader = "the text has the thing's name"
            name, guessed = f"{kind}.caption.docs_{count}", self._reader.chance
            self.score(name, right, guessed, asked.prompts, reader, given)

    # ------------------------------------------------------------------------------------ parts

    def _questions(self, kind: EmojiKind) -> Questions[EmojiPrompt]:
        if kind not in self._asked:
            seed, size = self._examples.seed, self._examples.size
            prompts = emoji_prompts(self._examples, kind, self._count)
            name = f"emoji {kind}, dataset seed {seed}, {size} pixels"
            self._asked[kind] = Questions(name, _SPLITS[kind], prompts)
        return self._asked[kind]

    def _one_of_same_style(self, asked: Questions[EmojiPrompt]) -> Given:
        held = self._documents_by_look()
        shown = [[held[_look_of(prompt)].ids] for prompt in asked.items]
        return Given(shown, 1, "chosen by name: one in the prompt's style")

    def _documents_by_look(self) -> Looks:
        documents = {document.key: document for document in self.bank.documents()}
        held = {}
        for index in range(self._examples.bank_size):
            example = self._examples.example("bank", index)
            if example.key in documents:
                placed: Placed = example.scene.things[0]
                held[placed.noun, placed.style, placed.size] = documents[example.key]
        return held

    def _draw(
        self, name: str, asked: Questions[EmojiPrompt], given: Given
    ) -> tuple[np.ndarray, list[bool]]:
        images = np.stack([image_of(one) for one in self.draw(asked, given)])
        return images, self._judge(name, images, asked, given)

    def _judge(
        self,
        name: str,
        images: np.ndarray,
        asked: Questions[EmojiPrompt],
        given: Given = NOTHING,
        drawn: bool = True,
    ) -> list[bool]:
        scenes = [prompt.scene for prompt in asked.items]
        guessed = float(np.mean([self._reader.chance ** len(scene.things) for scene in scenes]))
        prompts, nearest = asked.prompts, f"nearest of {self._reader.candidates} pictures"
        named = self._reader.shows(images, scenes)
        reader = f"emoji.Reader: {nearest}, by name"
        self.score(f"{name}.name", named, guessed, prompts, reader, given, drawn)
        styled = self._reader.shows(images, scenes, styles=True)
        reader += " and style"
        self.score(f"{name}.look", styled, guessed, prompts, reader, given, drawn)
        return named


def _look_of(prompt: EmojiPrompt) -> tuple[str, str, str]:
    """A prompt's thing, style and size."""
    (placed,) = prompt.scene.things
    return placed.noun, placed.style, placed.size


def _looks_of(prompt: EmojiPrompt, held: Looks) -> dict[str, np.ndarray]:
    """Ids of the documents of a prompt's thing, at its size, by style."""
    (placed,) = prompt.scene.things
    return {
        style: document.ids
        for (noun, style, size), document in held.items()
        if (noun, size) == (placed.noun, placed.size)
    }
