"""VQA accuracy by the rules of the official script (VQA v2, arXiv 1612.00837).

An answer counts min(1, n/3) where n of the other nine people gave it, averaged over which nine.
Answers are normalised only where people disagree; the script's oddities are part of the score.
"""

import re
from collections.abc import Sequence

from cm3jax.errors import UserError

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOPS = 32  # the script hands `re.UNICODE` to `sub` as the number of replacements
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_ARTICLES = ("a", "an", "the")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}

# A word that lost exactly one of its apostrophes gets it back.
_WHOLE = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _WHOLE.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the script's own slip


def accuracy(answer: str, people: Sequence[str]) -> float:
    """0 to 1 for one answer against everybody's; `UserError` where nobody answered."""
    if not people:
        raise UserError("a question without anybody's answer has no accuracy; leave it out.")
    given, others = _plain(answer), [_plain(one) for one in people]
    if len(set(others)) > 1:
        given, others = normalise_answer(given), [normalise_answer(one) for one in others]
    same = others.count(given)
    agreeing = sum(min(1.0, (same - (one == given)) / 3) for one in others)
    return agreeing / len(others)


def normalise_answer(answer: str) -> str:
    """Lower case, punctuation and articles gone, numbers as digits, apostrophes back in place."""
    words = [_DIGITS.get(word, word) for word in _unmarked(answer).lower().split()]
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def _plain(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _unmarked(answer: str) -> str:
    """A mark beside a space goes, as every mark does where a comma groups digits; any other becomes
    a space. A full stop stays only before a digit."""
    grouped = re.search(r"\d,\d", answer)
    out = answer
    for mark in _MARKS:
        beside = f"{mark} " in answer or f" {mark}" in answer
        out = out.replace(mark, "" if beside or grouped else " ")
    return re.sub(r"\.(?!\d)", "", out, count=_FULL_STOPS)
