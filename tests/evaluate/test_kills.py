"""`launch.evaluate` killed at random moments, and in two processes at once."""

import json
import random
import re

import pytest
import safetensors.numpy

from cm3jax import testing
from cm3jax.evaluate.drawing import CHUNK
from cm3jax.evaluate.inception_weights import shapes
from cm3jax.evaluate.protocol import scores_from_json
from tests.evaluate import inputs
from tests.evaluate.processes import kill, marks, start
from tests.evaluate.test_coco_fid import drawn, words, write_tree
from tests.launch.runs import finish

pytestmark = pytest.mark.slow  # a process takes seconds to start

COUNT = 140
CHUNKS = -(-COUNT // CHUNK)
WAYS = 2
ALL_DRAWN, ALL_DONE = 2 * CHUNKS, 2 * CHUNKS + (1 + WAYS) * CHUNKS
RESULTS = ("scores.json", "report.html", "reference.npz")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    testing.write_chain(root)
    texts = [testing.CAPTIONS[place % 4][:20] for place in range(COUNT)]
    write_tree(root, texts, inputs.pictures(COUNT, seed=4, size=20))
    safetensors.numpy.save_file(inputs.weights(shapes(2)), root / "inception.safetensors")
    return root


def command(home, out, *more):
    how = ("--run", home / "decoder", "--documents", "0", "1", "--samples", "2")
    return words(home, out, *how, *more)


@pytest.fixture(scope="module")
def undisturbed(home):
    printed = finish([start(command(home, home / "whole"))])
    assert re.search(r"peak memory \d\.\d\d GiB$", printed.rstrip())
    return home / "whole"


def notes(out):
    return list(out.glob("docs_*/drawn-*.json"))


def done(out):
    """Chunks that are drawn, and chunks whose features are there."""
    return notes(out) + list(out.glob("features/*/*.npy"))


def done_pictures(out):
    """The images of all chunks that are drawn."""
    return [
        note.parent / "samples_2" / f"{int(name):012d}.png"
        for note in notes(out)
        for name in json.loads(note.read_text())
    ]


def require_the_same(out, undisturbed):
    assert len(drawn(out)) == WAYS * COUNT
    assert drawn(out) == drawn(undisturbed)
    for name in RESULTS:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(home, undisturbed):
    out, chance = home / "killed", random.Random(0)
    # While it draws, while it computes features, and while it scores.
    ranges = [(1, 2), (3, 4), (ALL_DRAWN + 1, ALL_DONE - 3)]
    kept, seen = {}, []
    for target in [chance.randint(*ends) for ends in ranges] + [ALL_DONE]:
        kill(command(home, out), lambda: len(done(out)) >= target, chance.uniform(0, 0.2))  # noqa: B023
        assert not (out / "scores.json").exists()
        kept |= marks([path for path in done(out) + done_pictures(out) if path not in kept])
        seen.append(len(done(out)))
    assert seen[1] < ALL_DRAWN < seen[2] < ALL_DONE == seen[3]
    finish([start(command(home, out))])
    require_the_same(out, undisturbed)
    assert marks(list(kept)) == kept  # nothing that was done was done again
    assert len(kept) == ALL_DONE + WAYS * COUNT


def test_two_processes_that_share_the_work_end_with_its_result(home, undisturbed):
    out = home / "shared"
    shares = [start(command(home, out, "--part", f"{part}/2")) for part in (1, 2)]
    printed = [process.communicate()[0] for process in shares]
    assert [process.returncode for process in shares] == [0, 0], printed
    scored = [text for text in printed if f"wrote {out / 'scores.json'}" in text]
    waited = [text for text in printed if "run the others" in text]
    assert len(scored) + len(waited) == 2
    assert scored
    require_the_same(out, undisturbed)
    for text, chunks in zip(printed, (2, 1), strict=True):  # each its own, of three
        assert text.count(f": {chunks} of {chunks} chunks of {CHUNK} captions drawn") == 2
        assert text.count(f": {chunks} of {chunks} chunks of features computed") == 1 + WAYS
    # Both find everything, and score at once.
    kept = marks(done(out))
    shares = [start(command(home, out, "--part", f"{part}/2")) for part in (1, 2)]
    for process in shares:
        assert f"wrote {out / 'scores.json'}" in finish([process])
    require_the_same(out, undisturbed)
    assert marks(done(out)) == kept
    assert scores_from_json(json.loads((out / "scores.json").read_text()))
    assert not list(out.rglob("*.part"))
