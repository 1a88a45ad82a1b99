"""Killing a run again and again: does it come out as if it had never been interrupted?

python -m tests.launch.kills --kills 30

A run of 300 steps is killed at random moments, also while it starts or saves; the next life goes on
with another number of devices. It is compared with a run that was never killed, and each life with
a replay from the checkpoint that it began with.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cm3jax.training.metrics import read_metrics
from tests.launch import runs
from tests.launch.runs import finish, start

STEPS = 300
REPLAYED = 10
DEVICES = (1, 2, 4)


@dataclass(frozen=True)
class Life:
    """What one life of the run left behind."""

    devices: int
    begun: int
    """The step that it had to begin with: that of the newest checkpoint."""
    lines: list[dict]
    """What it logged itself, in order."""


@dataclass(frozen=True)
class Outcome:
    """What the comparison found."""

    lives: list[Life]
    steps_compared: int
    """Steps whose batch fingerprint was compared, those done twice counted twice."""
    bitwise: int
    """Losses that had to be the same bits, and were."""
    worst: float
    """Largest relative difference of the other losses from those of their replay."""


def run(folder: Path, kills: int, seed: int = 0) -> Outcome:
    """Kill and compare; `AssertionError` when a life differs."""
    draw = random.Random(seed)
    options = [*runs.options(folder), "--checkpoint.every", "10", "--train.validate-every", "0"]
    whole, broken, replays = folder / "whole", folder / "broken", folder / "replays"
    finish(start(options, whole, STEPS, devices=1))
    truth = {line["step"]: line for line in read_metrics(whole)}

    lives: list[Life] = []
    for number in range(kills + 1):
        devices = draw.choice(DEVICES) if number % 3 else 1
        begun = _newest(broken)
        if begun:
            shutil.copytree(
                broken / "checkpoints" / str(begun), replays / f"{number}/checkpoints/{begun}"
            )
        before = read_metrics(broken)
        (victim,) = start(options, broken, STEPS, devices=devices)
        if number == kills:
            finish([victim])
        else:
            # As many steps are left to each life, on average, as this one may take.
            target = begun + draw.randint(0, 2 * (STEPS - begun) // (kills + 1 - number))
            while len(read_metrics(broken)) < min(target, STEPS - 20):
                assert victim.poll() is None, victim.communicate()[0]
                time.sleep(0.002)
            time.sleep(draw.random() * 0.05)  # anywhere in a step or a save
            victim.kill()
            victim.communicate()
        after = read_metrics(broken)
        # Killed before it opened the log, it wrote nothing: the last lines are an earlier life's.
        lines = [line for line in after if line["step"] > begun] if after != before else []
        lives.append(Life(devices, begun, lines))
        print(
            f"life {number}: {devices} devices, steps {begun} to {begun + len(lines)}", flush=True
        )
    assert [line["step"] for line in read_metrics(broken)] == list(range(1, STEPS + 1))
    return _compare(lives, truth, options, replays)


def _newest(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    folder = run_dir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _compare(
    lives: list[Life], truth: dict[int, dict], options: list[str], replays: Path
) -> Outcome:
    bitwise, compared, worst = 0, 0, 0.0
    on_one_mesh = True
    for number, life in enumerate(lives):
        # What was saved before a life began was made by those before it.
        reference = truth
        if not on_one_mesh and life.lines:
            replay = replays / str(number)
            finish(start(options, replay, min(life.begun + REPLAYED, STEPS), devices=1))
            reference = {line["step"]: line for line in read_metrics(replay)}
        on_one_mesh &= life.devices == 1
        for line in life.lines:
            step = line["step"]
            compared += 1
            assert line["resumed_from"] == life.begun, (number, line)
            assert line["batch_fingerprint"] == truth[step]["batch_fingerprint"], (number, step)
            if step not in reference or (life.devices > 1 and step > life.begun + REPLAYED):
                continue
            ours, theirs = line["loss"], reference[step]["loss"]
            if life.devices == 1:
                bitwise += 1
                assert ours == theirs, (number, step, ours, theirs)
            else:
                worst = max(worst, abs(ours - theirs) / abs(theirs))
                assert worst <= 1e-5, (number, step, ours, theirs)
    return Outcome(lives, compared, bitwise, worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), given.kills, given.seed)
    resumed = sum(life.begun > 0 for life in outcome.lives)
    print(
        f"{given.kills} kills, {resumed} lives resumed; {outcome.steps_compared} batches equal, "
        f"{outcome.bitwise} losses bitwise equal, the others within {outcome.worst:.1e}."
    )


if __name__ == "__main__":
    main()
