from pathlib import Path

import numpy as np
import pytest

from cm3jax.evaluate.protocol import wilson
from cm3jax.sequence.document import Image, Text, parse
from experiments.claims.harness import Bench, bootstrap, content

SHIPPED = Path(__file__).resolve().parents[3] / "experiments/miniature/weights"


@pytest.fixture
def bench(tmp_path):
    return Bench(SHIPPED, tmp_path, tmp_path / "samples", lambda line: None, seeds=2, prompts=3)


def test_seeds_have_prompts_of_their_own(bench):
    every = bench.asked("heldout")
    assert [len(asked) for asked in every] == [3, 3]
    assert len({prompt.text for asked in every for prompt in asked}) == 6
    assert len(content(every)) == 12


def test_a_share_has_an_interval_over_seeds_and_prompts(bench):
    protocol = bench.protocol("p", content(bench.asked("scene")), "s", "r")
    assert (protocol.seed, protocol.seeds, protocol.retrieved) == (0, 2, 0)
    score = bench.share("p", np.array([[True, False, True], [True, True, True]]), 0.1, protocol)
    assert score.value == pytest.approx(5 / 6)
    assert (score.n, score.chance, score.protocol) == (6, 0.1, protocol)
    low, high = score.interval
    assert 0 < low < 5 / 6 < high <= 1
    # The bootstrap of equal verdicts would be a point.
    assert bench.share("p", np.zeros((2, 3), bool), 0.1, protocol).interval == wilson(0, 6)


def test_the_bootstrap_covers_what_it_should():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        low, high = bootstrap((rng.random((3, 50)) < 0.3).astype(float))
        inside += low <= 0.3 <= high
    assert inside >= 85
    # Seeds that differ make it wider than prompts alone would.
    apart = np.repeat([[0.0], [0.5], [1.0]], 50, axis=1)
    low, high = bootstrap(apart)
    assert high - low > 0.5


def test_documents_are_rendered_pairs(bench):
    (prompt,) = bench.asked("heldout")[0][:1]
    (ids,) = bench.documents([(prompt.text, prompt.image)])
    text, image = parse(ids, bench.generator.vocab)
    assert isinstance(text, Text)
    assert isinstance(image, Image)
    assert bench.generator.text.decode(list(text.pieces)) == prompt.text


def test_a_prompt_without_documents_has_a_cell_that_says_so(bench):
    """As where all that the bank has for it scores below the floor."""
    cell = bench.best_cell([])
    assert (cell.label, cell.picture) == ("retrieved", None)
    assert cell.text == "no document scores above the floor"
