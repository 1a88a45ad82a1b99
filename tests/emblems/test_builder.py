import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cm3jax.emblems import Scene, builder, example
from cm3jax.emblems.builder import Emblems, EmblemsConfig, build_dataset


@pytest.fixture
def small_bank(monkeypatch):
    monkeypatch.setattr(builder, "bank_size", lambda training: 120)


def _files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*array_record*"))
    }


def test_records_are_the_documents_in_order(tmp_path, small_bank):
    prepared = build_dataset(tmp_path, EmblemsConfig(records=100, emblems=90, seed=2))
    for split, count in (("train", 100), ("validation", 200), ("bank", 120)):
        records = prepared.as_data_source(split)
        assert len(records) == count
        for index in (0, 1, 39, 99):
            record, document = records[index], example(split, index, 2, training=90)
            assert record["key"].decode() == document.key == f"{split}-{index}"
            assert record["kind"].decode() == document.kind
            scenes = tuple(Scene.from_json(text.decode()) for text in record["scenes"])
            assert scenes == document.scenes
            texts = [part for part in document.segments if isinstance(part, str)]
            assert [text.decode() for text in record["texts"]] == texts
            images = [part for part in document.segments if not isinstance(part, str)]
            assert len(record["images"]) == len(images)
            for stored, image in zip(record["images"], images, strict=True):
                np.testing.assert_array_equal(stored, image)


def test_files_are_the_same_bytes_every_time(tmp_path, small_bank):
    for name in ("a", "b"):
        build_dataset(tmp_path / name, EmblemsConfig(records=40))
    first, second = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert first == second
    assert len(first) == 3


KILLED = """
import os, signal, sys
from cm3jax.emblems import builder

builder.bank_size = lambda training: 120
def say(done, total):
    if done:
        os.kill(os.getpid(), signal.SIGKILL)
builder.build_dataset(sys.argv[1], builder.EmblemsConfig(records=40), say)
"""


@pytest.mark.slow  # one stopped in this process is written again below
def test_what_a_killed_process_left_is_deleted_by_the_next(tmp_path, small_bank):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment, check=False)
    assert done.returncode == -9
    (left,) = tmp_path.rglob("incomplete*_2.0.0")
    theirs = left.parent / "incomplete.ABCDEF_2.0.0"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("mine")
    build_dataset(tmp_path, EmblemsConfig(records=40))
    assert not left.exists()
    assert {path.name for path in left.parent.iterdir()} == {"2.0.0", theirs.name}
    assert (theirs / "thesis.tex").read_text() == "mine"


@pytest.mark.slow  # three data sets; `io/test_folders.py` has locks
def test_the_first_of_two_concurrent_writers_wins(tmp_path, small_bank):
    config = EmblemsConfig(records=40)
    begun = []

    def say(done, total):
        if not begun:
            begun.append(done)
            other = threading.Thread(target=build_dataset, args=(tmp_path / "both", config))
            other.start()  # as another process would meanwhile
            other.join()

    both = build_dataset(tmp_path / "both", config, say)
    assert not list((tmp_path / "both").rglob("incomplete*"))
    assert len(both.as_data_source("train")) == 40
    build_dataset(tmp_path / "alone", config)
    assert _files(tmp_path / "both") == _files(tmp_path / "alone")


def test_a_whole_dataset_is_reused_and_an_interrupted_one_written_again(tmp_path, small_bank):
    config = EmblemsConfig(records=40)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(tmp_path, config, stop)
    calls = []
    build_dataset(tmp_path, config, lambda done, total: calls.append((done, total)))
    assert calls == [(0, 360), (360, 360)]
    build_dataset(tmp_path, config, lambda done, total: calls.append((done, total)))
    assert len(calls) == 2


def test_size_records_and_seed_have_folders_of_their_own(tmp_path):
    configs = (EmblemsConfig(), EmblemsConfig(records=10), EmblemsConfig(seed=1))
    configs += (EmblemsConfig(size=64), EmblemsConfig(emblems=90))
    builders = [Emblems(data_dir=str(tmp_path), config=config) for config in configs]
    assert len({str(builder.data_path) for builder in builders}) == 5


def test_the_builder_works_as_a_plain_tfds_builder(tmp_path, small_bank):
    """As TFDS users call it, with large images."""
    config = EmblemsConfig(records=8, size=64)
    own = Emblems(data_dir=str(tmp_path), config=config, file_format="array_record")
    own.download_and_prepare()
    assert own.as_data_source("train")[3]["images"][0].shape == (64, 64, 3)
    assert own.info.splits["train"].num_examples == 8
