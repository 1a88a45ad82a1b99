"""Makes `vqa.json`: what the official script finds for the edge cases of its rules.

    python tests/evaluate/reference/make_vqa.py PATH_OF/vqaEval.py

The script is `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of github.com/GT-Vision-Lab/VQA
(a013f00). It is Python 2: its print statements are dropped, nothing else is changed.
"""

import copy
import importlib
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent

ANSWERS = (
    """
two|Two.|none|zero dogs|the one|a|an apple|the  the|cant|CAN'T|couldnt've|couldn'tve|Im|yall
somebody'd|ow's'at|weve|1,000|1,000 - 2|5.5|5.|.5|U.S.A.|a.m.|mr. x|yes!|yes !|yes,no
yes, no|yes , no|and/or|t-shirt|black-and-white|black - white|"red"|{x}|[x]|(x)|x=y+z|a_b|<b>
me@x.com|what?|back\\slash|`quoted`|it's|its
5:30|5 : 30|10%|$5|don't know|dont know|ten|eleven|...|....................................x|-|?|
""".replace("\n", "|")
    .strip("|")
    .split("|")
)

PEOPLE = [
    (["yes"] * 10, ["yes", "Yes", "yes.", "no", " yes\n", "ye\ts"]),
    (["yes."] * 10, ["yes.", "yes", "yes. "]),
    (["yes"] * 9 + ["Yes"], ["yes", "Yes", "YES!", "no"]),
    (["two", "2", "two dogs", "2 dogs", *["3"] * 4, "three", "a 3"], ["2", "two", "3", "dogs"]),
    (["red"] * 2 + ["blue"] * 3 + ["green"] * 4 + ["the green"], ["red", "blue", "green", "a red"]),
    (["t-shirt", "t shirt", "tshirt"], ["t-shirt", "tshirt", "t - shirt"]),
    (["x"], ["x", "y"]),
    (["x", "x"], ["x", "X"]),
]


def official(path: str):
    """The script's class."""
    source = Path(path).read_text().replace("\t", "    ")
    scratch = HERE / "_vqa_eval.py"
    scratch.write_text(re.sub(r"^( *)print .*$", r"\1pass", source, flags=re.M))
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module("_vqa_eval").VQAEval
    finally:
        scratch.unlink()


class Annotations:
    def __init__(self, qa):
        self.qa = qa

    def getQuesIds(self):
        return list(self.qa)


def judged(scorer, answer: str, people: list[str]) -> float:
    truth = {"question_type": "x", "answer_type": "y", "answers": []}
    truth["answers"] = [{"answer": a, "answer_id": i} for i, a in enumerate(people)]
    asked = Annotations({1: copy.deepcopy(truth)})
    found = scorer(asked, Annotations({1: {"answer": answer}}), n=12)
    found.evaluate()
    return found.accuracy["overall"] / 100


def main() -> None:
    scorer = official(sys.argv[1])
    bare = scorer(Annotations({}), Annotations({}))
    answers = [*ANSWERS, *bare.contractions]
    value = {
        "normalised": {a: bare.processDigitArticle(bare.processPunctuation(a)) for a in answers},
        "judged": [
            {"answer": answer, "people": people, "accuracy": judged(scorer, answer, people)}
            for people, asked in PEOPLE
            for answer in asked
        ],
    }
    (HERE / "vqa.json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
