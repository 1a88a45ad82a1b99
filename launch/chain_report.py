"""`report.html` of a chain: what its members are, how long they took, and what the decoder does."""

from collections.abc import Mapping

from etils import epath

from cm3jax.config import Experiment
from cm3jax.evaluate.cases_page import score_table, table_of
from cm3jax.evaluate.protocol import scores_from_json
from cm3jax.io.files import read_json, write_atomic
from cm3jax.report.html import facts, page, tag
from cm3jax.training.metrics import read_metrics
from launch.stages import in_words

_SHOWN = ("loss_valid", "psnr_valid", "hit_valid_text", "hit_valid_image")
"""What of a member's last validation stands in the table."""


def write_chain_report(
    out: epath.PathLike, source: str, members: Mapping[str, Experiment]
) -> epath.Path:
    """Write the page from the files of a chain in `out`, and return its path."""
    out = epath.Path(out)
    seconds = read_json(out / "results" / "seconds.json", "the timings")
    head = ("member", "steps", "time", "last validation", "report")
    rows = [_member(part, member, seconds) for part, member in members.items()]
    body = [
        tag("h1", f"A chain on {source}"),
        facts([(name, in_words(value)) for name, value in seconds.items()]),
        tag("h2", "Members"),
        table_of(head, rows),
    ]
    scores = out / "results" / "heldout.json"
    if scores.exists():
        link = tag("a", "Pictures beside the truth, and the protocols", href="results/heldout.html")
        body += [
            tag("h2", "On held-out records"),
            tag("p", link),
            tag("div", score_table(scores_from_json(read_json(scores, "the scores")))),
        ]
    path = out / "report.html"
    write_atomic(path, page(f"cm3jax: a chain on {source}", tag("main", *body)))
    return path


def _member(part: str, member: Experiment, seconds: Mapping[str, float]) -> list[str]:
    took = seconds.get(f"train {member.learner}")
    lines = [line for line in read_metrics(member.run_dir) if "loss_valid" in line]
    last = lines[-1] if lines else {}
    said = [f"{name} {last[name]:.3f}" for name in _SHOWN if last.get(name) is not None]
    return [
        part,
        f"{member.train.steps:,}",
        in_words(took) if took else "",
        ", ".join(said),
        tag("a", "report", href=f"{part}/report.html"),
    ]
