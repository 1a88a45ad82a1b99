"""The card of an uploaded run: what the run itself says of its data, its scores and its making."""

from collections.abc import Mapping, Sequence

import huggingface_hub
import jax

import cm3jax
from cm3jax.evaluate.protocol import Protocol, Score
from cm3jax.training.exported_run import LoadedRun

_PROTOCOL = (
    "prompts",
    "split",
    "documents",
    "bank",
    "sampler",
    "guidance",
    "samples",
    "rerank",
    "seed",
    "reader",
    "weights",
    "code_version",
)
"""The fields of a protocol that the card shows; scores.json has all."""


def model_card(run: LoadedRun, name: str, scores: Mapping[str, Score]) -> str:
    """The README.md of the run in the hub's repository `name`: Markdown below YAML.

    Its figures come from the run's own stamps and from `scores`, each with its protocol; what the
    run does not say, the card calls unknown.
    """
    front = huggingface_hub.ModelCardData(
        library_name="cm3jax",
        pipeline_tag="text-to-image",
        tags=["cm3leon", "jax", "retrieval-augmented-generation", "text-to-image"],
        model_name=name.partition("/")[2],
        eval_results=[_hub_result(title, score) for title, score in scores.items()] or None,
    )
    parts = [_head(run, name), _licences(run), _scores(scores), _making(run)]
    return f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _hub_result(title: str, score: Score) -> huggingface_hub.EvalResult:
    return huggingface_hub.EvalResult(
        task_type="text-to-image",
        dataset_type="cm3jax",
        dataset_name=f"{score.protocol.prompts}, {score.protocol.regime}",
        metric_type=title,
        metric_value=score.value,
    )


def _head(run: LoadedRun, name: str) -> str:
    model = run.experiment.model
    count = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    documents = ""
    if run.experiment.retrieval.encoder:
        documents = (
            "\n\nDocuments are retrieved from a memory bank, which is not part of this repository: "
            '`cm3jax.load(…, bank="PATH")` takes one that was made with the encoder in `clip/`.'
        )
    return f"""# {name.partition("/")[2]}

A model of text and images in the form of CM3Leon, made with cm3jax: the experiment
`{run.experiment.name}` after {run.step:,} steps, {count:,} parameters ({model.layers} layers of
width {model.width}, a context of {model.context:,} tokens).

```python
import cm3jax
model = cm3jax.load("hf:{name}")
model.generate("a prompt").image
```{documents}"""


def _licences(run: LoadedRun) -> str:
    if not run.licences:
        return "## Training data\n\nThe run does not say which licences its training rows had."
    shares = sorted(run.licences.items(), key=lambda pair: -pair[1])
    rows = [(name or "unknown", f"{share:.1%}") for name, share in shares]
    return "## Training data\n\nShares of the training rows by licence:\n\n" + _table(
        ("licence", "share"), rows
    )


def _scores(scores: Mapping[str, Score]) -> str:
    if not scores:
        return "## Scores\n\nNone were given."
    rows = [
        (
            title,
            f"{score.value:.4g}",
            "{:.4g} to {:.4g}".format(*score.interval),
            f"{score.n:,}",
            score.protocol.regime,
        )
        for title, score in scores.items()
    ]
    table = _table(("score", "value", "95 % interval", "answers", "protocol"), rows)
    groups: dict[str, list[str]] = {}
    for title, score in scores.items():
        groups.setdefault(_protocol(score.protocol), []).append(f"`{title}`")
    stamps = "\n".join(f"- {', '.join(titles)}: {stamp}" for stamp, titles in groups.items())
    lead = "Measured under these protocols, which `scores.json` has in full:"
    return "\n\n".join(["## Scores", table, lead, stamps])


def _protocol(protocol: Protocol) -> str:
    said = [f"{name} {getattr(protocol, name)}" for name in _PROTOCOL]
    return "; ".join([f"{protocol.regime}", *said])


def _making(run: LoadedRun) -> str:
    prints = [(f"{name} fingerprint", value) for name, value in sorted(run.fingerprints.items())]
    data = [(f"data: {name}", value) for name, value in sorted(run.data.items())]
    rows = [("written by", f"cm3jax {cm3jax.__version__}"), *prints, *data]
    return "## How it was made\n\n`config.json` has every setting.\n\n" + _table(
        ("stamp", "value"), rows
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
