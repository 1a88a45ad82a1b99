"""Killing a preparation again and again: does it write the same bytes as an undisturbed one?

python -m tests.data.kills --records 100000 --kills 10

A folder of small images, every seventh of them broken, becomes a bank and a corpus. The process
gets SIGKILL or Ctrl-C at random moments, in a shard or while it saves; the next life goes on. Then
every file is compared, byte for byte, with those of a preparation that nobody disturbed, and with
what somebody else had put there.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cm3jax.io.checksums import file_entry
from tests.data import preparation

ROOT = Path(__file__).parents[2]
CANARIES = ("thesis.tex", ".bank.notes", "bank.json", "corpus/thesis.tex", "corpus/.train.notes")
"""Files of somebody else's around the folders that are written."""


def start(path: Path, out: Path, shard: int, *options: str) -> subprocess.Popen:
    """A preparation in a process of its own."""
    command = [sys.executable, "-m", "tests.data.preparation", str(path), str(out), str(shard)]
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def disturb(path: Path, out: Path, shard: int, kills: int, shards: int, seed: int = 0) -> list[int]:
    """Prepare what `preparation.write` made, about `shards` shards, and kill the process `kills`
    times. Returns how many shards each life made."""
    draw, stood = random.Random(seed), list[int]()
    for place in CANARIES:
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(place)
    for life in range(kills + 1):
        process, seen = start(path, out, shard), 0
        left, later = shards - sum(stood), kills - life
        # As many shards are left to each life, on average, as this one may make, and two at least.
        target = draw.randint(1, max(1, min(2 * left // (later + 1), left - 2 * later)))
        assert process.stdout
        for line in process.stdout:
            seen += "shards, about" in line
            if seen >= target and life < kills:
                time.sleep(draw.random() * 0.03)  # anywhere in a shard or a save
                process.send_signal(draw.choice((signal.SIGKILL, signal.SIGINT)))
                break
        rest = _rest(process)
        stood.append(seen)
        assert process.returncode in ((-9, -2) if life < kills else (0,)), rest
        assert [(out / place).read_text() for place in CANARIES] == list(CANARIES)
    return stood


def _rest(process: subprocess.Popen) -> str:
    """What else it prints until its end."""
    try:
        return process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:  # Python drops a Ctrl-C that comes while an object is deleted
        process.kill()
        return process.communicate()[0]


def checksums(out: Path) -> dict[str, dict]:
    """Of every file of a bank and a corpus, by name; the report alone knows the clock."""
    foreign = {out / place for place in CANARIES}
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file not in foreign]
    return {
        str(file.relative_to(out)): file_entry(file)
        for file in files
        if file.name != "corpus-report.json"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--shard", type=int, default=2048)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, begun = Path(folder), time.perf_counter()
        preparation.write(path, given.records)
        print(f"{given.records} records in {time.perf_counter() - begun:.0f} s", flush=True)
        begun = time.perf_counter()
        whole = start(path, path / "whole", given.shard)
        assert whole.stdout
        shards = sum("shards, about" in line for line in whole.stdout)
        assert whole.wait() == 0
        print(f"{shards} shards in {time.perf_counter() - begun:.0f} s", flush=True)
        lives = disturb(path, path / "broken", given.shard, given.kills, shards, given.seed)
        files = checksums(path / "whole")
        assert checksums(path / "broken") == files
    made = ", ".join(map(str, lives))
    print(f"{given.kills} kills, lives of {made} shards: {len(files)} files, all bytes the same.")


if __name__ == "__main__":
    main()
