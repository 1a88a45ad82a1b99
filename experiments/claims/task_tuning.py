"""Instruction tuning teaches every task, stories in turn among them."""

from experiments.claims.claim import Measured, Row, Scores, Table, Target, percent
from experiments.claims.harness import Bench
from experiments.miniature.scores.task_scores import evaluate_tasks

_LEAST = {
    "editing": (0.85, "editing: the asked for picture exactly"),
    "segmentation_iou": (0.85, "segmentation to picture: mean IoU of the classes"),
    "edges_attributes": (0.8, "edges to picture: attributes"),
    "depth_attributes": (0.8, "depth to picture: attributes"),
    "grounded_iou": (0.8, "objects at given places: mean IoU of the boxes"),
    "words": (0.8, "printed words, letter by letter"),
    "vqa": (0.9, "questions"),
    "caption": (0.9, "captions"),
    "long_caption": (0.8, "long captions, with relations"),
    "science": (0.8, "rationale, then the right answer"),
    "story_order": (0.9, "stories: number and order of texts and pictures"),
    "story_scenes": (0.8, "stories: pictures show what was told"),
}
"""What a tuned model must reach, and what is counted."""
_SHOWN = 4
"""Figures of each score."""


def _measure(bench: Bench) -> Measured:
    found = evaluate_tasks(
        bench.shipped / "sft",
        before=bench.run,
        count=bench.prompts,
        say=bench.say,
        keep=bench.keep,
    )
    rows = tuple(
        (
            what,
            percent(found.scores[f"before.{name}"]),
            percent(found.scores[f"tuned.{name}"]),
            f"{found.scores[f'tuned.{name}'].chance:.1%}",
        )
        for name, (_, what) in _LEAST.items()
    )
    every = [[one for one in found.figures if one.kind == f"tuned.{name}"] for name in _LEAST]
    # Of worst cases first, then best ones.
    few = [one for shown in every for one in (*shown[: _SHOWN // 2], *shown[-_SHOWN // 2 :])]
    columns = ("task", "before tuning", "tuned", "chance")
    table = Table("Every task before and after tuning", columns, rows)
    return Measured(found.scores, tables=(table,), figures=tuple(few))


def _headline(scores: Scores) -> str:
    tuned = {name: scores[f"tuned.{name}"].value for name in _LEAST}
    worst = min(tuned, key=lambda name: tuned[name])
    reached = sum(tuned[name] >= least for name, (least, _) in _LEAST.items())
    return (
        f"one tuned model reaches {reached} of {len(tuned)} marks, its worst being {worst} with "
        f"{tuned[worst]:.1%}; questions {tuned['vqa']:.1%}, captions {tuned['caption']:.1%}, "
        f"edits {tuned['editing']:.1%}, images of stories {tuned['story_scenes']:.1%}"
    )


def _reaches(name: str, least: float):
    return lambda scores: scores[f"tuned.{name}"].value >= least


ROW = Row(
    name="tasks",
    title="Instruction tuning, and stories continued",
    claim="One model, tuned on a mixture of tasks, edits, draws from maps, boxes and words, "
    "captions, answers and explains: zero-shot 61.6 CIDEr on MS-COCO, 47.6 on VQA2, 37.6 on "
    "VizWiz and 23.8 on OKVQA, near models that read 13 and 33 times as much text. It also goes on "
    "with documents of texts and images in turn.",
    source="CM3Leon (arXiv 2309.02591), section 4 and table 2",
    how="The shipped decoder was tuned on eleven tasks over emblems (`experiments/miniature/sft`). "
    "Held-out cases of each are asked once, in the notation that a user types, and programs read "
    "the answers; beside them the model before tuning, and chance, which is what the right answer "
    "to another case scores. Training and sampling have one seed.",
    seconds=300,
    measure=_measure,
    headline=_headline,
    targets=tuple(
        Target(f"{what}: at least {least:.0%}", _reaches(name, least))
        for name, (least, what) in _LEAST.items()
    ),
)
