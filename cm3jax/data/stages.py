"""The rows of a curriculum: those of one stage after those of another, at fixed steps.

    position = Position(row=batches given, parts=(place in the corpora,))

A batch is a function of its number and of the place, and the place of those before: a run that goes
on inside a stage or at its border reads what the run that was never interrupted reads.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from cm3jax.config import CurriculumConfig
from cm3jax.data.cm3_rows import CorpusRows
from cm3jax.data.packing import Position
from cm3jax.data.pipeline import CorpusStream, HostBatch


@dataclasses.dataclass(frozen=True, eq=False)
class StagedStream:
    """A `CorpusStream` whose rows and shares change at the steps of a curriculum.

    A block of records is planned by one stage's rules: where these change, each corpus goes on with
    its next block, and what is left of the block comes in the next epoch.
    """

    whole: CorpusStream
    stages: CurriculumConfig

    @property
    def corpora(self) -> Sequence[CorpusRows]:
        """The corpora, by the experiment's own values."""
        return self.whole.corpora

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Those of the corpora."""
        return self.whole.fingerprints

    @property
    def notes(self) -> list[str]:
        """What holds in each stage, and how many documents the last one's samples are shown."""
        last = len(self.stages.starts) - 1
        said = [f"{self.stages.describe(number)}." for number in range(last + 1)]
        return said + [f"in stage {last + 1}, {note}" for note in self._at(last).notes]

    def batches(self, position: Position) -> Iterator[HostBatch]:
        """This process's rows of the global batches from `position` on, without end."""
        given, starts = position.row, self.stages.starts
        place = position.parts[0] if position.parts else Position()
        for number in range(bisect.bisect_right(starts, given) - 1, len(starts)):
            end = starts[number + 1] if number + 1 < len(starts) else None
            left = None if end is None else end - given
            for batch in itertools.islice(self._at(number).batches(place), left):
                given, place = given + 1, batch.next
                if given == end:
                    place = self._at_border(place, number)
                yield dataclasses.replace(batch, next=Position(row=given, parts=(place,)))

    def _at(self, number: int) -> CorpusStream:
        """The stream of a stage."""
        config = self.corpora[0].config.at_stage(self.stages, number)
        return self.whole.remade(config, self.stages.weights_of(number))

    def _at_border(self, place: Position, number: int) -> Position:
        """Where the stage after `number` begins, which stopped at `place`."""
        config = self.corpora[0].config
        if config.at_stage(self.stages, number) == config.at_stage(self.stages, number + 1):
            return place
        if not place.parts:
            return self.corpora[0].after_block(place)
        parts = zip(self.corpora, place.parts, strict=True)
        return dataclasses.replace(place, parts=tuple(c.after_block(p) for c, p in parts))
