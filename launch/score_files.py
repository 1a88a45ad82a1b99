"""The files of an evaluation: its scores as JSON, a page of cases, and the folder of its samples.

Files that no evaluation wrote stay as they are: `ScoreFiles` refuses them before any work.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from cm3jax.errors import UserError
from cm3jax.evaluate.cases_page import cases_page, is_cases_page, score_table
from cm3jax.evaluate.protocol import Score, scores_from_json, scores_to_json
from cm3jax.evaluate.results import Figure
from cm3jax.io.files import require_replaceable, sweep_scratch, write_atomic, write_json
from cm3jax.io.folders import hold
from cm3jax.io.paths import require_folder
from cm3jax.report.html import Html
from cm3jax.retrieval.pages import blank_written

_PAGE, _SAMPLES = ".html", ".samples"


@dataclasses.dataclass(frozen=True)
class ScoreFiles:
    """Where an evaluation writes; `UserError` where that would replace something of another's."""

    scores: epath.Path
    page: epath.Path | None
    """None where the evaluation shows nothing."""
    samples: epath.Path

    def __post_init__(self):
        require_replaceable(self.scores, _is_scores, "the scores")
        if self.page is not None:
            require_replaceable(self.page, is_cases_page, "the page of the scores")
        if self.samples.exists() and not self.samples.is_dir():
            raise UserError(f"{self.samples} is a file, where the samples go; give another --out.")

    @classmethod
    def named(cls, out: str, with_page: bool = True) -> "ScoreFiles | None":
        """The files of `--out FILE`, all under its name; None without one."""
        if not out:
            return None
        path = epath.Path(out)
        if path.is_dir():
            raise UserError(f"--out {out} is a folder; give a JSON file for the scores.")
        if path.suffix in (_PAGE, _SAMPLES):
            raise UserError(
                f"--out {out} is the name of what is written next to the scores; give a JSON file, "
                f"such as {path.with_suffix('.json')}."
            )
        page = path.with_suffix(_PAGE) if with_page else None
        return cls(path, page, path.with_suffix(_SAMPLES))

    @classmethod
    def inside(cls, folder: epath.PathLike) -> "ScoreFiles":
        """The files of an evaluation that fills a folder."""
        require_folder(folder, "the scores")
        folder = epath.Path(folder)
        return cls(folder / "scores.json", folder / "report.html", folder)

    @contextlib.contextmanager
    def held(self, doing: str) -> Iterator[None]:
        """Be the only evaluation that writes these files; what a killed one left half is deleted.

        `doing` says what for to who is refused meanwhile.
        """
        with hold(self.scores, doing):
            names = [path.name for path in (self.scores, self.page) if path is not None]
            sweep_scratch(self.scores.parent, "|".join(map(re.escape, names)))
            sweep_scratch(self.samples, r"[0-9a-f]{16}\.json")
            yield

    def write(
        self,
        scores: Mapping[str, Score],
        page: Html | None = None,
        banks: Sequence[epath.PathLike] = (),
    ) -> None:
        """Write the page, if there is one, and last the scores: these say that all is done.

        `banks` are those whose documents the page shows: what was taken out meanwhile is blanked.
        """
        if self.page is not None and page is not None:
            write_atomic(self.page, page)
            blank_written(self.page, banks)
        write_json(self.scores, scores_to_json(dict(scores)))


def page_of(title: str, about: str, scores: Mapping[str, Score], figures: Sequence[Figure]) -> Html:
    """The page of an evaluation whose table is that of its scores."""
    return cases_page(title, about, score_table(scores), figures, scores)


def _is_scores(content: bytes) -> bool:
    """Whether a file holds what an evaluation writes and nothing else, unlike a `metrics.json`."""
    try:
        value = json.loads(content)
        found = scores_from_json(value) if isinstance(value, dict) else {}
    except (ValueError, RecursionError):
        return False
    parts = {"details", *(name.split(".")[0] for name in found)}
    return bool(found) and value.keys() == parts
