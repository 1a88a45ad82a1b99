"""The same corpus, byte for byte, whoever prepares it and however often it is killed."""

import pytest

from cm3jax.data.prepare import prepare
from cm3jax.data.runners import Beam, InProcess
from cm3jax.io.files import read_json
from launch.tools import make_tools
from tests.data import preparation
from tests.data.kills import checksums, disturb, start

RECORDS, SHARD, KILLS = 120, 10, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Raw data and its undisturbed preparation."""
    path = preparation.write(tmp_path_factory.mktemp("made"), RECORDS)
    config = preparation.experiment(path, path / "out", SHARD)
    tools = make_tools(config)
    prepare(config, tools, lambda line: None, InProcess(tools))
    return path


def test_the_report_lists_what_was_refused(made):
    report = read_json(made / "out" / "corpus-report.json", "the report")
    train = report["splits"]["train"]
    broken = [n for n in range(RECORDS) if n % 7 == 3 and n % 50 != 49]
    assert sorted(train["refused"]) == sorted(f"{n}.png" for n in broken)
    assert list(train["reasons"].values()) == [len(broken)]
    assert train["records"] == RECORDS - 2 - len(broken)
    estimate = report["estimate"]
    assert estimate["records"] == train["records"] + report["splits"]["validation"]["records"]
    hours = estimate["seconds"] / estimate["records"] * 1e6 / 3600
    assert estimate["hours_per_million"] == pytest.approx(hours)
    bank = read_json(made / "out" / "bank" / "manifest.json", "the bank")
    assert bank["refused"] == train["refused"]


@pytest.mark.slow
def test_beam_in_one_process_gives_the_same_bytes(made, tmp_path):
    config = preparation.experiment(made, tmp_path, SHARD)
    lines = []
    engine = Beam(make_tools, ["--runner=BundleBasedDirectRunner"])
    prepare(config, make_tools(config), lines.append, engine)
    assert checksums(tmp_path) == checksums(made / "out")
    assert any(line.startswith("train: 12/12 shards") for line in lines)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_beam_in_two_processes_gives_the_same_bytes(made, tmp_path):
    workers = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    process = start(made, tmp_path, SHARD, "--runner=DirectRunner", *workers)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    assert checksums(tmp_path) == checksums(made / "out")


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_preparation_that_is_killed_again_and_again_comes_out_the_same(made, tmp_path):
    lives = disturb(made, tmp_path, SHARD, KILLS, shards=2 * RECORDS // SHARD)
    assert sum(shards > 0 for shards in lives) >= 3
    assert checksums(tmp_path) == checksums(made / "out")
