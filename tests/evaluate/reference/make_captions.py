"""Makes `captions.json`: what pycocoevalcap 1.2 finds, with Stanford's tokenizer in Java.

    pip install pycocoevalcap==1.2   # and a Java runtime
    python tests/evaluate/reference/make_captions.py

`lines` are single captions with their words; `sets` are captions with references and scores.
"""

import json
import random
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

HERE = Path(__file__).parent

LINES = """
A man can't ride the dog's bike. It isn't "big", is it?
Two (2) men -- one in red; one in blue -- wait: yes!
We'll see they're here, I've an idea I'm sure he'd like and you'd've don't won't
I cannot say he is gonna or wanna or has gotta; gimme this, lemme see, 'tis done
Mr. Smith of the U.S. goes to St. Louis, e.g. at 5 p.m. or 9 a.m., etc. and so on
10,000 people at 5:30 p.m. on 12/25/2010 with $5.00 and 50% off
a well-known black-and-white dog, mid-air over a 2-story house
it's the dogs' park 'quoted' “curly quotes” ‘single’ it’s don’t
cats & dogs; A&M AT&T B&B
a cake with 1/2 cup of milk, 3 1/2 cups of flour
... wait.... what... . . .
men and/or women [bracket] {brace}
#hashtag @user $100 and £5 a seat
the '90s and 1990's, 80's hair
a "stop" sign's 'STOP' sign
ma'am at four o'clock likes rock 'n' roll, Mr. O'Brien
No. 5 vs. the Jr. team. It has no. There are figs.
a woman.girl in an oven.The end
hello,world a,b 1,2 1,000 wow!! what?! really???
- dash -dash dash- --double em—dash en–dash
café naïve 日本語 ñ
a 7th 1st 2nd floor, 6 ft. tall, 20's style
a T-shirt, an x-ray, B-52 and a 747 at 24/7
a 3D TV. The T.V. is on, D.C. too; C++ and c# books
*star* a*b a+b=c a_b ~tilde^caret|pipe
y'all won't find 2x4 lumber w/o 4x4 trucks
a dog in Mass. and an apple in Ill. but an ill. word
Wii-mote, hot-dog.
he said:"hi" and left the '
""".strip("\n").split("\n")

SUBJECTS = [
    "a man",
    "two women",
    "the dog's owner",
    "a black-and-white cat",
    "kids",
    "Mr. Jones",
    "nobody",
]
DEEDS = ["rides", "isn't riding", "holds", "is next to", "looks at", "can't see", "sits on"]
OBJECTS = [
    "a bike",
    "a red bus.",
    'the "stop" sign',
    "1,000 balloons!",
    "an old T.V.",
    "pizza (large)",
    "",
]
ENDINGS = [
    "",
    "in the park",
    ", at 5 p.m.",
    "... on a sunny day.",
    "while others watch; it's fun",
    "in the U.S.",
]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(part) for part in (SUBJECTS, DEEDS, OBJECTS, ENDINGS)).strip()


def made_set(seed: int, pictures: int) -> dict:
    rng = random.Random(seed)
    references = [[sentence(rng) for _ in range(rng.randint(1, 5))] for _ in range(pictures)]
    captions = [rng.choice([theirs[0], sentence(rng), sentence(rng)]) for theirs in references]
    captions[0] = "..."  # nothing is left of it
    return scored(captions, references)


def words(texts: list[list[str]]) -> dict[int, list[str]]:
    wrapped = {i: [{"caption": text} for text in own] for i, own in enumerate(texts)}
    return PTBTokenizer().tokenize(wrapped)


def scored(captions: list[str], references: list[list[str]]) -> dict:
    made, real = words([[caption] for caption in captions]), words(references)
    bleu, _ = Bleu(4).compute_score(real, made, verbose=0)
    _, rouge = Rouge().compute_score(real, made)
    _, cider = Cider().compute_score(real, made)
    return {
        "captions": captions,
        "references": references,
        "bleu": list(map(float, bleu)),
        "rouge_l": list(map(float, rouge)),
        "cider": list(map(float, cider)),
    }


def main() -> None:
    found = words([[line] for line in LINES])
    lines = [{"caption": line, "words": found[i][0].split(" ")} for i, line in enumerate(LINES)]
    sets = [made_set(1, 40), made_set(2, 7), scored(["a cat"], [["a cat", "one cat"]])]
    value = {"lines": lines, "sets": sets}
    (HERE / "captions.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
