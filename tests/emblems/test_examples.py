import collections
import subprocess
import sys

import numpy as np
import pytest

from cm3jax.emblems import bank_size, caption, example
from cm3jax.emblems.examples import ORIGINS, bank_documents
from cm3jax.emblems.looks import MEMORY_ONLY, SYLLABLES, TRAINING, catalogue
from cm3jax.emblems.patches import QUARTERS
from cm3jax.emblems.sample import home
from cm3jax.io.files import digest
from tests.emblems import documents

_DIGEST = """
from cm3jax.emblems import example
from cm3jax.io.files import digest

documents = [example(split, i, 3) for split in ("train", "validation", "bank") for i in range(100)]
print(digest(*(part for document in documents for part in document.segments)))
"""

_RAREST = """
import collections
from cm3jax.emblems import example

counts = collections.Counter(name for i in range(15_000) for name in example("train", i).emblems)
print(len(counts), min(counts.values()), max(counts.values()))
"""


def _run(script, hash_seed):
    command = [sys.executable, "-c", script]
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_documents_are_the_same_in_every_process():
    first = _run(_DIGEST, "1").strip()
    here = [example(split, i, 3) for split in ("train", "validation", "bank") for i in range(100)]
    assert first == digest(*(part for document in here for part in document.segments))


def test_documents_are_the_same_on_every_machine():
    """Pins images and captions: shipped weights were trained on them."""
    parts = [part for document in documents.train()[:300] for part in document.segments]
    assert digest(*parts) == "9b53317bc28c47f7"


def test_another_seed_has_other_emblems_and_documents():
    assert not set(catalogue(0).looks) & set(catalogue(1).looks)
    assert example("train", 0, seed=0).segments[0] != example("train", 0, seed=1).segments[0]


def test_large_pictures_show_the_same_scene():
    for document in documents.train()[:50]:
        large = example("train", int(document.key.split("-")[1]), size=64)
        assert large.scenes == document.scenes
        for small, big in zip(documents.pictures(document), documents.pictures(large), strict=True):
            np.testing.assert_array_equal(big[::2, ::2], small)
            assert big.shape == (64, 64, 3)


def test_kinds_have_exact_shares():
    kinds = collections.Counter(document.kind for document in documents.train()[:1000])
    shares = {"emblem": 450, "pair": 200, "scene": 250, "word": 40, "palm": 30, "story": 30}
    assert kinds == shares


def test_most_captions_are_short():
    long = [d for d in documents.train()[:1000] if " is " in documents.texts(d)[0]]
    assert 20 <= len(long) <= 60


def test_stories_alternate_and_change_one_thing_at_a_time():
    stories = [document for document in documents.train()[:1000] if document.kind == "story"]
    for story in stories:
        assert [isinstance(part, str) for part in story.segments] == [True, False] * 3
        for before, after in zip(story.scenes, story.scenes[1:], strict=False):
            assert before.background == after.background
            values = zip(
                *(vars(scene.shapes[0]).values() for scene in (before, after)), strict=True
            )
            assert sum(a != b for a, b in values) == 1


def test_emblems_are_many_unique_and_unrelated_to_their_names():
    emblems = catalogue(0)
    assert len(set(emblems.names)) == len(set(emblems.looks)) == TRAINING + MEMORY_ONLY
    assert MEMORY_ONLY >= 500
    assert QUARTERS**4 >= 10_000
    assert len(set(SYLLABLES)) == 60
    # Names that start alike look no more alike than any two: a look agrees in 4 / 96 quarters.
    by_start = collections.defaultdict(list)
    for name, look in zip(emblems.names, emblems.looks, strict=True):
        by_start[name[:4]].append(look)
    agree = [
        np.mean(np.array(looks[0]) == np.array(look))
        for looks in by_start.values()
        for look in looks[1:]
    ]
    assert len(agree) > 1000
    assert abs(np.mean(agree) - 1 / QUARTERS) < 0.005


def test_every_training_emblem_is_seen_and_some_far_more_often():
    """Twice in 15,000 documents, as emblems go round in turn: six times in 50,000."""
    seen, rarest, commonest = map(int, _run(_RAREST, "0").split())
    assert seen == TRAINING
    assert rarest >= 2
    assert commonest >= 20 * rarest


def test_splits_are_disjoint_in_emblems():
    memory_only = catalogue(0).memory_only
    validation = [example("validation", index) for index in range(150)]
    for document in (*documents.train()[:1000], *validation):
        assert memory_only.isdisjoint(document.emblems)
    for document in documents.bank():
        assert (document.kind == "memory") == (not memory_only.isdisjoint(document.emblems))


def test_no_scene_is_in_two_splits():
    """Palms are few and shared; all other scenes have one home."""
    validation = tuple(example("validation", index) for index in range(150))
    for split, some in (
        ("train", documents.train()[:1000]),
        ("validation", validation),
        ("bank", documents.bank()),
    ):
        for document in some:
            if document.kind == "story":
                assert "prompts" not in {home(caption(scene)) for scene in document.scenes}
            elif document.kind != "palm":
                assert home(caption(document.scene)) == split


def test_the_bank_has_documents_of_every_emblem():
    assert bank_size() >= 5000
    for training in (TRAINING, 700):
        numbers = range(MEMORY_ONLY + training)
        covered = collections.Counter(i for n in numbers for i in bank_documents(n, training))
        assert covered == dict.fromkeys(range(bank_size(training)), 1)
        names = catalogue(0, training).names
        for number in (0, 1, MEMORY_ONLY - 1, MEMORY_ONLY, MEMORY_ONLY + 1, numbers[-1]):
            for index in bank_documents(number, training):
                assert example("bank", index, training=training).emblems == (names[number],)


def test_memory_only_emblems_do_not_depend_on_the_training_ones():
    """So evaluations agree on prompts and on the documents that answer them."""
    few, many = catalogue(0, 700), catalogue(0, 5000)
    assert few.names == many.names[: len(few.names)]
    assert few.looks == many.looks[: len(few.looks)]
    for index in (0, 1800, 2999):
        one, other = (example("bank", index, training=training) for training in (700, 5000))
        assert (one.scenes, one.key) == (other.scenes, other.key)
        assert len(one.segments) == len(other.segments)


def test_more_training_emblems_are_each_seen_less():
    def seen(training):
        return collections.Counter(
            name for i in range(1000) for name in example("train", i, training=training).emblems
        )

    few, many = seen(100), seen(5000)
    assert len(few) == 100
    assert len(many) > 400
    assert min(few.values()) > 2 >= min(many.values())


def test_the_bank_mixes_pairs_and_halves():
    halves = collections.Counter(
        "".join("t" if isinstance(part, str) else "i" for part in document.segments)
        for document in documents.bank()
    )
    total = len(documents.bank())
    assert halves["ti"] / total == pytest.approx(0.86, abs=0.03)
    assert halves["t"] / total == pytest.approx(0.07, abs=0.02)
    assert halves["i"] / total == pytest.approx(0.07, abs=0.02)
    for number in range(0, MEMORY_ONLY, 20):
        pairs = [len(example("bank", index).segments) == 2 for index in bank_documents(number)]
        assert sum(pairs) >= 3


def test_sources_and_licences_belong_together():
    assert {(d.source, d.licence) for d in documents.train()[:300]} == set(ORIGINS)


@pytest.mark.parametrize(("split", "index"), [("bank", bank_size()), ("train", -1), ("test", 0)])
def test_documents_that_do_not_exist(split, index):
    with pytest.raises(IndexError, match="no document"):
        example(split, index)
