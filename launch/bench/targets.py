"""Training steps of experiments compiled for accelerators, none of which is needed here.

Each case is compiled by `launch.plan --target` in a process of its own and kept in `--out` when it
is made: started again, the command compiles those that are missing, or that differ. It takes
minutes a case, needs the extras `tpu` and `cuda`, and writes the table to `--page`.
"""

import argparse
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cm3jax.io.experiment_json import read_as
from cm3jax.io.files import require_replaceable, write_atomic
from cm3jax.targets import Target
from cm3jax.training.metrics import revision
from launch.bench.tables import require_results
from launch.env import FLAGS

_ROOT = Path(__file__).resolve().parents[2]

_SPLASH = "--model.attention splash"
# `data.batch` is one pass's rows; `optim.accumulate` makes the paper's batches of them.
CASES = (
    f"cm3leon_350m --target v5e-8 --mesh.data 1 --mesh.fsdp 8 --data.batch 32 {_SPLASH}",
    f"cm3leon_760m --target v6e-16 --mesh.data 2 --mesh.fsdp 8 --data.batch 64 {_SPLASH}",
    "cm3leon_760m --target h200-8 --mesh.data 1 --mesh.fsdp 8 --data.batch 64 "
    "--model.attention cudnn",
    f"cm3leon_7b --target v5p-256 --mesh.data 8 --mesh.fsdp 32 --data.batch 512 {_SPLASH}",
    f"cm3leon_7b --target v6e-256 --mesh.data 8 --mesh.fsdp 32 --data.batch 256 {_SPLASH}",
    "cm3leon_7b --target v6e-256 --slices 2 --mesh.data 16 --mesh.fsdp 32 "
    f"--data.batch 512 {_SPLASH}",
    "cm3leon_7b --target h200-64 --mesh.fsdp 64 --model.attention cudnn",
    f"sft_7b --target v5p-128 --mesh.data 4 --mesh.fsdp 32 --data.batch 256 {_SPLASH}",
    f"sft_7b --target v5p-32 --mesh.fsdp 32 --model.lora-rank 16 --data.batch 128 {_SPLASH}",
    f"parti --target v5p-256 --mesh.data 8 --mesh.fsdp 32 --data.batch 1024 {_SPLASH}",
    f"dalle --target v5p-256 --mesh.data 16 --mesh.fsdp 16 {_SPLASH}",
    f"chameleon_7b --target v5p-256 --mesh.data 8 --mesh.fsdp 32 --data.batch 512 {_SPLASH}",
    f"ra_cm3 --target v5p-64 --mesh.data 16 --mesh.fsdp 4 --data.batch 256 {_SPLASH}",
    "vqgan_256 --target v5e-8 --data.batch 64",
    "vqgan_512 --target v5p-8 --data.batch 32",
    "miniature/clip --target v5e-1",
    "miniature/decoder --target v5e-1",
    "miniature/vqgan --target h200-1",
)
"""Options of `launch.plan`, one case each."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--out", default="docs/targets.json", help="the file of results")
    add("--page", default="docs/targets.md", help="the page with the table")
    add("--only", default="", help="compile only the cases with these words in them")
    add("--seconds", type=int, default=1800, help="most seconds for one case")


def bench_targets(options: argparse.Namespace) -> dict[str, Any]:
    """Compile what is missing, and write results and table; a case that fails says why in it.

    Raises `UserError`, before anything is compiled, rather than replace another page.
    """
    out = Path(options.out)
    require_results(options.out, lambda found: all("--target " in case for case in found))
    title = _HEAD.partition("\n")[0].encode()
    require_replaceable(options.page, lambda content: content.startswith(title), "the table")
    for case in CASES:
        if options.only in case and "target" not in _known(out).get(case, {}):
            found = _compile(case, options.seconds)
            # Read again: several may compile at once.
            write_atomic(out, json.dumps({**_known(out), case: found}, indent=1) + "\n")
    write_atomic(options.page, page(_known(out)))
    return {case: found.get("error", "compiled") for case, found in _known(out).items()}


def _known(out: Path) -> dict[str, Any]:
    """What was compiled before, of the cases that there still are."""
    found = read_as(dict[str, dict], out, "earlier results") if out.exists() else {}
    return {case: found[case] for case in CASES if case in found}


def _compile(case: str, seconds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "launch.plan", *shlex.split(case), "--json"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled in {seconds} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it failed"]
        said = [line for line in lines if line.startswith("error: ")] or lines
        return {"error": said[-1].removeprefix("error: ")}
    about = {"commit": revision(), "versions": _versions(), "flags": _flags(case)}
    return {**json.loads(done.stdout), **about}


def _flags(case: str) -> list[str]:
    """The compiler's flags today for a case's accelerator."""
    (name,) = re.findall(r"--target (\S+)", case)
    variables = FLAGS[Target.parse(name).accelerator.platform]
    return [flag for flags in variables.values() for flag in flags]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("jax", "libtpu", "jax-cuda13-plugin"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


_HEAD = """# Training steps compiled for accelerators

`python -m launch.bench targets` compiles a training step of each case below for accelerators that
are not here (`launch.plan --target`; the extras `tpu` and `cuda`, minutes a case) and writes this
page from `targets.json`. Nothing here was measured. Memory, collectives and kernels are what XLA's
compilers allocate and schedule. MFU is an upper bound, for arithmetic at the peak rate and the
collectives that it waits for. GB are 10⁹ bytes of one device. Collectives are counted each time
they run: those that overlap with arithmetic / all of them.

A row that ends with † was compiled with the flags of its commit, which are not today's, or no
commit was kept with it: today's program may have other collectives.

"""
_DECODING = """
## What a step of drawing reads

7 B over 8 v5e (`--decode --mesh.tensor 8 --prompts 4`, guided, compiled with 8 of its 32 layers):
each layer's matrices and cache are read once a step, none is copied, and the cache is updated where
it is. Of 616 MB of weights and full cache the compiled step reads 542 from memory; the rest, the
vocabulary's table and one layer's keys, stays in fast memory. With 32 layers that makes, by
arithmetic, 0.97 of weights and full cache. Room for what is drawn grows by quarters, so that over a
whole image a step reads 1.00 of the weights and the part of the cache that is filled.
"""
_FINDINGS = """
## What compiling showed, and what was changed

The programs of commit adebf71, which had never been compiled for an accelerator, and today's:

- **Flags for TPUs**: 7 B on 64 v6e (`fsdp` 64) had 0 asynchronous collectives next to 19 gathers
  that the step waits for. With today's flags {v6e} of 7 B on 256 v6e overlap with arithmetic.
- **How far `fsdp` may cut**: with fewer than 128 elements of `model.width` a device, gathers and
  the sums of gradients were whole (9 to 22 all-reduces, 100 to 370 s to compile). `launch.plan`
  says so and names a mesh; 7 B takes 8 × 32 × 1 on 256 v5p, where {v5p} collectives overlap.
- **`data` above 1 beside `fsdp`** (4 × 16 × 1 on 64 v5p): 21 gathers and 14 sums, none of which
  overlapped. Of RA-CM3's step, as 16 × 4 × 1 there, {ra_cm3} overlap today.
- **Meshes that no physical axis fits** (2 × 8 on 16 v6e, 2 × 32 on 64 v5p): a traceback of jax's.
  Today every mesh whose product is the slice's size is made, by splitting physical axes.
- **Several slices**: every mesh ended in a traceback. Today `data` goes across the slices,
  the other axes stay inside one; of 7 B on two slices of 256 v6e, {slices} overlap.
- **A whole copy on 32 H200** (4 × 8): "involuntary full rematerialization" of f32[8,4096,4096]. A
  test counts the collectives of a step for GPUs, where one gather waits.
- **Peak memory by formula / compiled**: 0.72 to 0.90 for 350 M on v5e, 0.66 to 0.95 for 760 M on
  H200, 0.90 to 0.94 for 7 B. Today {near_350m}, {near_760m} and {near_7b}.
- **Kernels**: `model.attention` was `xla` everywhere; `auto` takes splash on TPUs, cuDNN for
  whole rows and Triton for packed ones on GPUs. Splash reads 31 % fewer bytes a step (350 M on
  v5e).
- **Drawing with 7 B on v6e**: each chunk of 16 steps copied 96 matrices (3.2 GB) and 128 halves
  of the cache. Today it copies none.
- **`launch.plan parti`** was refused. Today it is planned. A device takes {parti} GB.
- **Ironwood**: jax's device is a core, with half of the chip's 2,307 TFLOP/s, which were counted
  for each of the two.
"""
_OPEN = "(open)"
"""A figure of `_FINDINGS` whose case is not compiled yet."""
_COLUMNS = (
    "experiment, mesh (data × fsdp × tensor)",
    "target",
    "peak / memory, GB",
    "formula / compiled",
    "collectives overlapped / all",
    "kernels",
    "MFU at most",
    "commit",
)


def page(known: dict[str, Any]) -> str:
    """The table, in Markdown."""
    lines = [_line(case, known.get(case, {"error": "not compiled yet"})) for case in CASES]
    said = [
        f"- `{case}`: {sentence}."
        for case in CASES
        for sentence in known.get(case, {}).get("target", {}).get("advice", ())
    ]
    versions = sorted({json.dumps(f["versions"]) for f in known.values() if "versions" in f})
    tail = "\n## What keeps a step from being faster\n\n" + "\n".join(said) + "\n" if said else ""
    made = "".join(
        "\nCompiled with " + ", ".join(f"{k} {v}" for k, v in json.loads(each).items()) + ".\n"
        for each in versions
    )
    head = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    table = "\n".join(head + lines) + "\n"
    return _HEAD + table + made + _DECODING + _findings(known) + tail


def _findings(known: dict[str, Any]) -> str:
    """`_FINDINGS` without the sentences whose figures are open."""
    text = _FINDINGS.format(**_today(known))
    inside = r"(?:[^.]|\.(?!\s))*"
    return re.sub(rf"\s+{inside}{re.escape(_OPEN)}{inside}\.(?=\s)", "", text)


def _today(known: dict[str, Any]) -> dict[str, str]:
    """What `_FINDINGS` says of today's programs; which collectives overlap, only of those that were
    compiled with today's flags."""
    compiled = {case: found for case, found in known.items() if "target" in found}
    flagged = {
        case: found for case, found in compiled.items() if found.get("flags") == _flags(case)
    }

    def of(cases: dict[str, Any], words: str, say: Callable[[dict[str, Any]], str]) -> str:
        said = (say(found["target"]) for case, found in cases.items() if words in case)
        return next(said, _OPEN)

    def near(target: dict[str, Any]) -> str:
        return f"{target['formula_over_compiled']:.2f}"

    return {
        "v6e": of(flagged, "cm3leon_7b --target v6e-256 --mesh.data 8", _overlap),
        "v5p": of(flagged, "cm3leon_7b --target v5p-256 --mesh.data 8", _overlap),
        "ra_cm3": of(flagged, "ra_cm3", _overlap),
        "slices": of(flagged, "--slices 2 --mesh.data 16", _overlap),
        "near_350m": of(compiled, "cm3leon_350m", near),
        "near_760m": of(compiled, "cm3leon_760m --target h200", near),
        "near_7b": of(compiled, "cm3leon_7b --target v5p-256 --mesh.data 8", near),
        "parti": of(compiled, "parti", lambda target: f"{target['peak_bytes'] / 1e9:.1f}"),
    }


def _overlap(target: dict[str, Any]) -> str:
    each = target["collectives"].values()
    hidden = sum(one["hidden"] for one in each)
    return f"{hidden:,} of {hidden + sum(one['waiting'] for one in each):,}"


def _line(case: str, found: dict[str, Any]) -> str:
    if "target" not in found:
        return f"| `{case}` | | {found['error']} | | | | | |"
    target = found["target"]
    mesh = target["mesh"]
    ratio = target["formula_over_compiled"]
    fits = "" if target["fits"] else ", does not fit"
    lora = re.search(r"--model\.lora-rank (\d+)", case)
    cells = [
        f"{found['experiment']}, {mesh['data']} × {mesh['fsdp']} × {mesh['tensor']}, "
        f"{target['rows']} rows" + (f", LoRA of rank {lora[1]}" if lora else ""),
        target["name"],
        f"{target['peak_bytes'] / 1e9:.1f} / {target['memory'] / 1e9:.0f}{fits}",
        f"{ratio:.2f}" if ratio else "",
        _overlap(target).replace(" of ", " / "),
        ", ".join(target["kernels"]) or "XLA's",
        f"{target['mfu_at_most']:.0%}",
        (found.get("commit") or "")[:7] + ("" if found.get("flags") == _flags(case) else " †"),
    ]
    return f"| {' | '.join(cells)} |"
