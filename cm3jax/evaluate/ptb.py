"""Words of captions as the Penn Treebank splits them, without Java.

COCO's caption scores are defined on the output of Stanford's PTBTokenizer (CoreNLP 3.4.1, lower
case) less its punctuation. This gives the same words for what captions hold, emoticons, phone
numbers, entities and markup included. Three things remain: letters that are younger than Unicode 6,
which Java drops; markup and entities that no caption writes; and that Java, given captions as the
lines of one file, looks into the next line for what follows a full stop.
"""

import re

from cm3jax.evaluate import ptb_tables as tables

_APART = frozenset(
    [
        "''",
        "'",
        "``",
        "`",
        "-LRB-",
        "-RRB-",
        "-LCB-",
        "-RCB-",
        ".",
        "?",
        "!",
        ",",
        ":",
        "-",
        "--",
        "...",
        ";",
    ]
)

_ALIKE = str.maketrans(
    {
        **dict.fromkeys("‘‹›", "`"),
        **dict.fromkeys("“”«»", '"'),
        "…": " ... ",
        "–": " -- ",
        "—": " -- ",
        "\u00a0": " ",
        "\u00ad": "",
    }
)
_QUOTES = re.compile("&(quot|apos);", re.IGNORECASE)
_CLITIC = re.compile("’(s|m|d|re|ve|ll)|n’t", re.IGNORECASE)

_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    '"': "''",
    "£": "#",
    "€": "$",
    "¢": "cents",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": ",",
    "&mdash;": "--",
    "&ndash;": "--",
    "’": "'",
}


def _any(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


def _ranges(table: str) -> str:
    """The inside of a class of characters."""
    return "".join("-".join(f"\\u{end}" for end in part.split("-")) for part in table.split())


_N = _ranges(tables.NUMERALS)
_W = rf"(?:(?![{_N}_])[\w{_ranges(tables.MARKS)}])"
_L = rf"(?:(?!\d){_W})"
_A = "['’]"
_NT = r"[nN]['’`][tT](?!\w)"
_LATER = r"(?=[,;:])"
"""What shows that a full stop ends no sentence, and belongs to the word before it."""
_SMILEY = r"[<>]?[:;=]'?-?[()DPpO3@|\]\\]|\^_\^|-_-|\([-^x=~<>'][_.]?[-^x=~<>']\)"
_PHONE = r"(?<!\w)(?:\(\d{2,3}\)\s?|\+\d{2,3}\s|\d{2,4}[\s-])(?:\d{2,4}[\s-])?\d{3,4}[\s-]?\d{3,5}"
_JOINED = "|".join(rf"{word[:3]}(?={word[3:]}\b(?!-))" for word in tables.JOINED.split())

_TOKEN = re.compile(
    rf"""
      https?://[^\s<>"]*[^\s<>".,;:!?()\[\]]
    | </?[A-Za-z!?][^<>\s]*(?:\s+[^<>\s]+)*\s*/?> | <!--.*?-->       # markup
    | &(?:\#\d+|eacute|(?i:amp|lt|gt|nbsp|mdash|ndash));
    | [\w.+-]+@\w+(?:[.-]\w+)*(?:[!?]\w+)*[,;?!]?                        # mail
    | @(?=[^\W\d])\w+ | \#[^\W\d_]+
    | {_PHONE}(?!\w)
    | (?i:{_JOINED})
    | (?i:'t)(?=(?i:is|was)(?:\b|n't\b))
    | {_A}(?:s|m|d|re|ve|ll|S|M|D|RE|VE|LL)(?!\w)
    | {_NT}
    | {_A}(?i:em|til|cause)(?!\w)
    | {_A}\d\d(?:s(?!\w)|(?![\w"]))                                  # '90s
    | {_A}[nN]{_A}(?=\W|[rR]oll|$) | {_A}[nN](?=\s|$)
    | [yY]{_A}(?=[aA]ll\b) | [jJ]{_A}(?=ai\b) | j{_A}(?={_L}) | l{_A}(?=a\b)
    | (?i:{_any(tables.APOSTROPHES.replace("'", _A))}|c'mon)(?!\w) | B{_A}day
    | (?:[oOdDlLMJ]|[qQ]u){_A}(?={_L}){_L}{_W}*(?<!['’]s)           # o'clock, d'or
    | (?:{_SMILEY})(?!\w)
    | [^\W\d_](?:\.[^\W\d_])+(?:\.?(?:-{_W}+)+|\.(?!\w)|(?!\w))        # u.s., a.m., u.s.-led
    | (?i:ph\.d|m\.sc|b\.sc|d\.phil)\.?(?!\w)
    | (?:(?i:{_any(tables.ABBREVIATIONS)})|{_any(tables.CAPITALISED)})\.(?!\w)
    | [A-Za-z]\.(?!\w|\s+</?[A-Za-z!?])
    | (?i:{_any(tables.NUMBERED)})\.(?=\s+\d)
    | \d+\s\d+/\d+(?![\d/])                                          # 3 1/2
    | \d+⁄\d+ | (?<=/\d)\.\d+
    | \d+[aApP](?=\.[mM]\b)
    | \d+(?:[.,:]\d+)+(?=[^\W\d])                                    # 5:30pm
    | [-+]?(?<![\w.,)])\.?\d+(?:[.,:/-]\d+)*(?![^\W{_N}]|[-/&]\w)
    | \d+(?:[.,:/-]\d+)*(?=['%$])
    | (?:(?!n['’`]t(?!\w)){_W})+?(?={_NT})                               # what n't is cut off
    | [cC]\+\+ | [cCfF]\#
    | [A-Z]+(?:&(?:amp;)?[A-Z]+)+(?:\.{_LATER})?
    | {_W}+(?:-{_W}+)*(?:/{_W}+(?:-{_W}+)*)+
    | {_W}+(?:[-_.‐‑]{_W}+|(?<!\d)[!?](?!\d){_W}+)*(?:-(?=\s|$)|\.{_LATER})?(?<!-)
    | {_W}+
    | \.\s?\.(?:\s?\.)*
    | [?!]+
    | -{{2,}} | \*+ | \#+ | _+ | @+
    | ``|''
    | \S
    """,
    re.VERBOSE,
)
_WORD = re.compile(_W)
_SYMBOL = re.compile(f"[{_ranges(tables.SYMBOLS)}]")


def tokens(caption: str) -> list[str]:
    """The words of one caption, lower case, punctuation left out."""
    caption = _QUOTES.sub(lambda found: '"' if found[1].lower() == "quot" else "'", caption)
    found = (_spelled(token) for token in _TOKEN.findall(caption.translate(_ALIKE)))
    return [token for token in found if token and token not in _APART]


def _spelled(token: str) -> str:
    """A token as the jar prints it; nothing for characters that it drops."""
    if _CLITIC.fullmatch(token):
        token = token.replace("’", "'")
    lower = token.lower().replace(" ", "\u00a0").replace("&amp;", "&")
    if lower in _SPELLED:
        return _SPELLED[lower]
    if len(token) == 1 and not (token < "\uffff" and (_WORD.match(token) or _SYMBOL.match(token))):
        return ""
    if token[0] == "." and set(token) <= {".", " "}:
        return "..." if len(token) > 1 else "."
    if token[0] == "-" and set(token) == {"-"}:
        return "--" if len(token) > 1 else "-"
    return lower.replace("(", "-lrb-").replace(")", "-rrb-")
