"""Your own folder in one command: from images with captions to a trained decoder and its report.

    python -m launch.chain PICTURES --out runs/mine
    python -m launch.chain PICTURES --out runs/large --side 256 --width 512
    python -m launch.chain PICTURES --out runs/mine --dry-run

Trains the members of `experiments/folder/*` in turn, prepares corpus and memory bank, draws for
held-out captions and writes `report.html`. What is finished is reused; what was interrupted goes on
with the same command.
"""

import dataclasses
import math
import os
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import tyro
from etils import epath

from cm3jax.config import Experiment, MeshConfig
from cm3jax.data.prepare import is_prepared, prepare
from cm3jax.data.sources import open_source
from cm3jax.errors import UserError
from cm3jax.io.files import read_json, sweep_scratch, write_json
from cm3jax.io.folders import hold
from cm3jax.io.paths import require_folder
from cm3jax.io.shard_writer import STATE
from cm3jax.io.typed_json import read_fields
from cm3jax.learners.text import TrainingTexts
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from cm3jax.training.best import best_validation, checkpoint_of
from cm3jax.training.hardware import in_words as this_machine
from cm3jax.training.metrics import read_metrics
from experiments.chain import SMALL, Choices
from experiments.folder.base import chain
from launch import estimates, heldout
from launch.chain_report import write_chain_report
from launch.chain_source import ChainSource
from launch.cli import parse
from launch.env import keep_freed_memory, main
from launch.evaluate_options import HeldOut
from launch.stages import Stage, in_words, run_stages, training
from launch.tools import make_tools

_DOCUMENTS = (0, 1, 2)
_RECORD = "choices.json"
_PROCEDURAL = ("emblems", "emoji")
"""Sources that are drawn, as many records as are asked for."""
_MOST_SCALE = 1e5
"""The largest `--scale`: steps beyond it are more than 32 bits count."""
_ALL = 10_000_000
"""More records than a folder has."""
_OTHERS = ("config.json", "metrics.json", "report.html")
"""Files at the root of a run, of the quickstart, or of another program's output."""


@dataclasses.dataclass(frozen=True)
class Options:
    """A folder, where its chain goes, and the choices from which its members follow."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PICTURES")]
    """The folder of images with captions, or another raw source, as `data.source`: docs/data.md
    says what is read."""
    out: str = "runs/mine"
    """Folder for everything that is made: the runs, corpus and bank, results and the report."""
    choices: Annotated[Choices, tyro.conf.arg(name="")] = SMALL
    splits: tuple[tuple[str, Literal["train", "validation", "bank"]], ...] = ()
    """Splits of parts of the source, as `data.splits`: e.g. `new bank` for a folder that is only in
    the memory bank."""
    hold_back: Literal["pictures", "subjects"] = "pictures"
    """What is held back for validation where no split says it: every 50th image with its captions,
    or every 50th of the records' `subjects` with all of its images."""
    licences: tuple[str, ...] = ()
    """Licences that a record may have, as `data.licences`; empty allows all."""
    scale: float = 1.0
    """Share of all steps of training: 0.01 shows soon that all parts work, 3 trains three times as
    long."""
    prompts: int = 100
    """Held-out captions that are drawn for, at most."""
    resume_with_changes: bool = False
    """Go on with a chain that was interrupted although the source has changed since, as in
    `launch.train`; without it that is refused. What is finished is never trained again."""
    dry_run: bool = False
    """Say what would be done, and how long it would take, and do nothing."""

    def __post_init__(self):
        if not 0 < self.scale <= _MOST_SCALE:
            raise UserError(f"--scale {self.scale} must be positive, and at most {_MOST_SCALE:g}.")
        if self.prompts < 1:
            raise UserError(f"--prompts {self.prompts} must be at least 1.")


def members(options: Options) -> dict[str, Experiment]:
    """The experiments of the chain, in their order."""
    source = _absolute(options.source)  # one spelling: what is made from it remembers its name
    made = chain(options.choices, source, options.out, f"{options.out}/data")
    return {part: _scaled(member, options) for part, member in made.items()}


def _scaled(member: Experiment, options: Options) -> Experiment:
    replace, train = dataclasses.replace, member.train
    steps = max(1, round(train.steps * options.scale))
    given = {name: getattr(options, name) for name in ("splits", "hold_back", "licences")}
    if member.data.source not in _PROCEDURAL:
        given["records"] = _ALL
    # Whole shares of a batch, on as many devices as that allows.
    devices = math.gcd(member.data.batch, jax.device_count())
    every = {name: min(getattr(train, name), steps) for name in ("log_every", "validate_every")}
    return replace(
        member,
        data=replace(member.data, **given),
        train=replace(train, steps=steps, **every),
        mesh=MeshConfig(data=devices),
        optim=replace(member.optim, warmup_steps=min(member.optim.warmup_steps, steps)),
    )


def stages(options: Options, counts: dict[str, int], rate: float) -> list[Stage]:
    """What the chain does, in order; `counts` are the records of each split, `rate` is
    `estimates.product_rate`."""
    chained, out = members(options), epath.Path(options.out)
    decoder, train = chained["decoder"], {}
    for part, member in chained.items():
        seconds = estimates.training_seconds(member, counts["train"], rate)
        train[part] = training(member, seconds, options.resume_with_changes)
    prepared = Stage(
        "corpus, bank and index",
        estimates.preparing_seconds(chained, sum(counts.values()), rate),
        decoder.data.corpus,
        lambda: is_prepared(decoder, make_tools(decoder)),
        lambda: _prepare(decoder),
    )
    order = [train["text"], train["vqgan"], train["clip"], prepared, train["decoder"]]
    if not counts["validation"]:
        print(f"{options.source} holds nothing back: nothing is drawn for unseen captions.")
        return order
    scores = out / "results" / "heldout.json"
    note = out / "results" / "asked.json"

    def asked() -> dict[str, Any]:
        """What decides the scores, apart from the weights, which are trained once."""
        manifest = epath.Path(decoder.data.bank) / "manifest.json"
        bank = read_fields(manifest, {"fingerprint": str}, "the memory bank")
        found = {"bank": bank["fingerprint"], "prompts": options.prompts}
        corpus = epath.Path(decoder.data.corpus) / "validation" / "manifest.json"
        if not corpus.exists():
            return found
        return found | {"held_back": read_fields(corpus, {}, "the corpus").get(STATE, "")}

    def done() -> bool:
        there = scores.exists() and note.exists()
        return there and read_json(note, "what was asked") == asked()

    def evaluate() -> None:
        write_chain_report(out, options.source, chained)  # whatever comes of the evaluation
        count, run = options.prompts, best_run(decoder.run_dir)
        query = HeldOut(run=run, documents=_DOCUMENTS, count=count, out=str(scores))
        heldout.evaluate(query, _say)
        write_json(note, asked())

    prompts = min(options.prompts, counts["validation"])
    evaluated = Stage(
        "evaluate on held-out records",
        estimates.drawing_seconds(decoder, prompts, len(_DOCUMENTS), rate),
        str(scores),
        done,
        evaluate,
    )
    return [*order, evaluated]


def require_same_source(options: Options, chained: Mapping[str, Experiment]) -> None:
    """Refuse a source that has changed since the chain was begun, as `ChainSource` says."""
    decoder = chained["decoder"]
    source = ChainSource(options.out, decoder, print)
    source.require_same(training(decoder, 0).done(), options.resume_with_changes)


def _guarded(stage: Stage, options: Options) -> Stage:
    """The stage, begun only if the source is still what the chain was begun with."""

    def run() -> bool | None:
        require_same_source(options, members(options))
        return stage.run()

    return dataclasses.replace(stage, run=run)


def _prepare(decoder: Experiment) -> None:
    prepare(decoder, make_tools(decoder), _say)
    if (epath.Path(decoder.run_dir) / "checkpoints" / str(decoder.train.steps)).exists():
        _say("the decoder was trained before that; to train one on it, give another --out")


def best_run(run_dir: str) -> str:
    """The checkpoint of a run's best validation, which is not the last one of a run that learns
    its images by heart; the run itself where it is."""
    best = best_validation(read_metrics(run_dir))
    path = None if best is None else checkpoint_of(run_dir, best)
    return run_dir if path is None else str(path)


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def require_same_choices(options: Options, dry: bool = False) -> None:
    """Refuse a folder that holds the chain of another source or of other choices; note them in a
    new one, unless it is a `dry` call."""
    chosen = dataclasses.asdict(options) | {"source": _absolute(options.source)}
    for name in ("out", "prompts", "resume_with_changes", "dry_run"):
        del chosen[name]
    path = epath.Path(options.out) / _RECORD
    if not path.exists():
        _require_free(path.parent)
        if not dry:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, chosen)
        return
    before = _flat(read_fields(path, {}, "the chain's choices"))
    now = _flat(_plain(chosen))
    differ = [f"{n}: {before.get(n)} → {now[n]}" for n in now if before.get(n) != now[n]]
    if differ:
        raise UserError(
            f"{options.out} holds a chain that was made with other choices ({'; '.join(differ)}); "
            "give those again, or another --out."
        )


def _require_free(out: epath.Path) -> None:
    """Refuse a folder with a page or a config that no chain made: its own would replace them."""
    for name in _OTHERS:
        if (out / name).exists():
            raise UserError(
                f"{out / name} does not belong to a chain and stays as it is; give another --out."
            )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _flat(choices: dict[str, Any]) -> dict[str, Any]:
    """The choices, those of the chain's sizes with the others."""
    sizes = choices.get("choices")
    rest = {name: value for name, value in choices.items() if name != "choices"}
    return rest | (sizes if isinstance(sizes, dict) else {})


def _absolute(source: str) -> str:
    """A folder by its absolute path, however it was typed."""
    if source in _PROCEDURAL or source.startswith("tfds:") or "://" in source:
        return source
    return os.path.abspath(source)


def command(argv: list[str]) -> None:
    """Parse the arguments, say what will be done, do what is missing, and write the report."""
    options = parse(
        Options,
        argv,
        "Go from a folder of images with captions to a trained decoder and its report.",
    )
    text = members(options)["text"]
    data = text.data
    counts = {split: len(open_source(data, split, 0)) for split in ("train", "validation", "bank")}
    counts["bank"] -= counts["train"]  # the bank has the training records, too
    require_folder(options.out, "the chain")
    require_same_choices(options, dry=True)
    todo = stages(options, counts, estimates.product_rate())
    print(
        f"{options.source}: {counts['train']:,} records for training, {counts['validation']:,} "
        f"held back, {counts['bank']:,} only in the bank; on {this_machine()}"
    )
    for number, stage in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {stage.name}: about {in_words(stage.budget)}")
    total = in_words(sum(stage.budget for stage in todo))
    print(f"about {total} in all at the speed measured just now, less what is finished")
    if options.dry_run:
        if not todo[0].done():
            # What most folders lack is captions: refused here as by the training.
            texts = TrainingTexts(data, text.seed)
            TextTokenizer.train(texts, text.vocab.text_pieces, text.tokenizers.algorithm)
        return
    with hold(options.out, f"training the chain of {options.source}"):
        require_same_choices(options)
        _run(options, [_guarded(stage, options) for stage in todo])


def _run(options: Options, todo: list[Stage]) -> None:
    out = epath.Path(options.out)
    sweep_scratch(out, r"choices\.json|source\.npy|report\.html")
    sweep_scratch(out / "results", r"(seconds|asked)\.json")
    timings = out / "results" / "seconds.json"
    timings.parent.mkdir(parents=True, exist_ok=True)
    made = members(options)
    if not any((epath.Path(one.run_dir) / "config.json").exists() for one in made.values()):
        ChainSource(out, made["decoder"], print).begin()
    require_same_source(options, made)
    run_stages(todo, timings)
    page = write_chain_report(options.out, options.source, made)
    run = best_run(made["decoder"].run_dir)
    how = shlex.join(["python", "-m", "launch.generate", "PROMPT", "--run", run, "--retrieve", "2"])
    print(f"wrote {page}; draw with {how}")


if __name__ == "__main__":
    keep_freed_memory()
    main(command)
