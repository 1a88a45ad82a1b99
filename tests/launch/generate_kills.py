"""Killing `launch.generate` again and again: is every sample that is listed there and whole, is
none lost, none drawn with a document that was removed, and nothing of somebody else's touched?

python -m tests.launch.generate_kills --kills 20

Each life is a process of its own that draws the same prompts by another seed into one folder until
it gets SIGKILL or SIGINT, at a random moment from its start to a little after its end.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image

PROMPTS = ["a red fox", "a blue circle", "two squares", "the moon"]
SAMPLES = 8


def live(words: list[str], log: str) -> None:
    """Draw, until killed; the log says when it begins and when all is done."""
    from launch import generate

    out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, sys.stdout.fileno())
    with contextlib.suppress(KeyboardInterrupt):
        Path(log).write_text("begun\n")
        generate.command(words)
        Path(log).write_text("done\n")


class Watch:
    """A folder of samples, and what it must hold."""

    def __init__(self, home: Path):
        from cm3jax import testing

        testing.write_chain(home)
        self.home, self.out, self.log = home, home / "samples", home / "log"
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["launch.generate"])
        self.lines: dict[str, dict[str, Any]] = {}
        self.removed: set[str] = set()
        self.canaries = {}
        for place in (self.out, self.out / "sub"):
            place.mkdir()
            for name in ("thesis.tex", "a-red-fox.png", ".samples.jsonl.notes", "samples.json"):
                (place / name).write_text(f"my {name}")
                self.canaries[place / name] = f"my {name}"

    def life(self, seed: int, seconds: float | None, how: signal.Signals) -> str:
        """One life, killed so long after its beginning, and its end: `killed`, `stopped`, `done`"""
        words = ["text", *PROMPTS, "--samples", str(SAMPLES), "--seed", str(seed), "--floor", "-1"]
        words += ["--retrieve", "1", "--run", str(self.home / "decoder"), "--out", str(self.out)]
        self.log.write_text("")
        process = self.processes.Process(target=live, args=(words, str(self.log)))
        process.start()
        while not self.log.read_text() and process.is_alive():
            time.sleep(0.002)
        if seconds is not None:
            process.join(seconds)
            if process.exitcode is None:
                assert process.pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, how)
                process.join(20)
                if process.exitcode is None:  # Python drops some: tests.retrieval.kills
                    process.kill()
        process.join()
        assert process.exitcode in (-9, 0), "it failed by itself"
        self.check()
        if process.exitcode:
            return "killed"
        return "done" if self.log.read_text() == "done\n" else "stopped"

    def check(self) -> None:
        """Nothing lost, nothing half there, nothing shown, nothing touched."""
        log = self.out / "samples.jsonl"
        content = log.read_bytes() if log.exists() else b""
        assert content.endswith(b"\n") or not content
        lines = {line["name"]: line for line in map(json.loads, content.splitlines())}
        assert len(lines) == content.count(b"\n"), "a sample is listed twice"
        for name, line in self.lines.items():
            assert lines[name] == line, "a sample was lost"
        for name in lines.keys() - self.lines.keys():
            with PIL.Image.open(self.out / lines[name]["file"]) as image:
                image.load()
                assert json.loads(image.info["cm3jax"]) == lines[name]
            keys = {document["key"] for document in lines[name]["documents"]}
            assert not keys & self.removed, "drawn with a removed document"
        self.lines = lines
        for path, text in self.canaries.items():
            assert path.read_text() == text, f"{path} was touched"

    def remove_one(self) -> None:
        """Take a document out that samples were drawn with."""
        from cm3jax.retrieval.bank import Bank
        from cm3jax.retrieval.removed import Removed
        from cm3jax.retrieval.takedown import remove

        key = next(iter(self.lines.values()))["documents"][0]["key"]
        remove(Bank.open(self.home / "bank"), Removed(keys=(key,)), [self.out], lambda line: None)
        self.removed.add(key)
        assert not (self.out / "contact.png").exists()
        self.check()


def disturb(home: Path, kills: int, seed: int) -> Counter:
    """Kill lives and check after each; how they ended."""
    watch, draw, ends = Watch(home), random.Random(seed), Counter[str]()
    assert watch.life(0, None, signal.SIGKILL) == "done"  # it compiles what the others read
    begin = time.monotonic()
    assert watch.life(1, None, signal.SIGKILL) == "done"
    usual = time.monotonic() - begin
    for number in range(kills):
        if number == kills // 2:
            watch.remove_one()
        how = draw.choice((signal.SIGKILL, signal.SIGINT))
        ends[watch.life(2 + number, draw.random() * 1.1 * usual, how)] += 1
    # An undisturbed life leaves nothing behind.
    assert watch.life(2 + kills, None, signal.SIGKILL) == "done"
    assert len([line for line in watch.lines.values() if line["seed"] == 2 + kills]) == (
        len(PROMPTS) * SAMPLES
    )
    assert (watch.out / "contact.png").exists()
    left = [path.name for path in watch.out.glob(".*")]
    assert left == [".samples.jsonl.notes"], left
    assert not (home / ".samples.lock").exists()
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        # Before anybody imports jax, which reads them then.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{home}/programs"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        (Path(home) / "chain").mkdir()
        ends = disturb(Path(home) / "chain", given.kills, given.seed)
        print(f"{ends.total()} lives:", ", ".join(f"{n} {what}" for what, n in ends.items()))


if __name__ == "__main__":
    main()
