"""`report.html` of a chain: what its members are, how long they took, and what the decoder does."""

from collections.abc import Mapping

from etils import epath

from cm3jax.config import Experiment
from cm3jax.evaluate.cases_page import score_table, table_of
from cm3jax.evaluate.heldout import meanings
from cm3jax.evaluate.protocol import read_scores
from cm3jax.io.experiment_json import read_as
from cm3jax.io.files import write_atomic
from cm3jax.report.html import facts, page, tag
from cm3jax.training.metrics import curve, read_metrics
from launch.stages import in_words, training

_SHOWN = {
    "loss_valid": "loss",
    "psnr_valid": "PSNR in dB",
    "hit_valid_text": "partner found by text",
    "hit_valid_image": "partner found by image",
}
"""The figures of a member's last validation in the table, and their names there."""


def write_chain_report(
    out: epath.PathLike, source: str, members: Mapping[str, Experiment]
) -> epath.Path:
    """Write the page from the files of a chain in `out`, and return its path."""
    out = epath.Path(out)
    timings = out / "results" / "seconds.json"
    seconds = read_as(dict[str, float], timings, "the timings") if timings.exists() else {}
    head = ("member", "steps", "time", "last validation", "report")
    trained = {part: training(member, 0).name for part, member in members.items()}
    rows = [_member(part, one, seconds.get(trained[part])) for part, one in members.items()]
    others = [(n, in_words(value)) for n, value in seconds.items() if n not in trained.values()]
    body = [
        tag("h1", f"A chain on {source}"),
        facts(others),
        tag("h2", "Members"),
        table_of(head, rows),
    ]
    scores = out / "results" / "heldout.json"
    if scores.exists():
        read = read_scores(scores)
        link = tag("a", "Images beside the truth, and the protocols", href="results/heldout.html")
        body += [
            tag("h2", "On held-out records"),
            tag("p", link),
            tag("div", score_table(read), class_="scroll"),
            facts(meanings(read)),
        ]
    path = out / "report.html"
    write_atomic(path, page(f"cm3jax: a chain on {source}", tag("main", *body)))
    return path


def _member(part: str, member: Experiment, last_life: float | None) -> list[str]:
    logged = read_metrics(member.run_dir)
    # A training that was interrupted took longer than its last life, which the stages timed.
    spent = curve(logged[-1:], "seconds")
    took = spent[0][1] if spent else last_life
    lines = [line for line in logged if "loss_valid" in line]
    said = [
        f"{words} {found[0][1]:.3f}"
        for name, words in _SHOWN.items()
        if (found := curve(lines[-1:], name))
    ]
    return [
        part,
        f"{member.train.steps:,}",
        in_words(took) if took else "",
        ", ".join(said),
        tag("a", "report", href=f"{part}/report.html"),
    ]
