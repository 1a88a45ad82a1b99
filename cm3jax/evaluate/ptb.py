"""Words of captions as the Penn Treebank splits them, without Java.

COCO's caption scores are defined on the output of Stanford's PTBTokenizer (CoreNLP 3.4.1, lower
case) less its punctuation. This gives the same words for what captions hold, emoticons, phone
numbers, entities and markup included. What remains: letters that are younger than Unicode 6, which
Java drops; markup and entities that no caption writes; `s’mores`, `ain'tcha` and `int'l`, of which
Java makes `s 'm ores`, `ai n'tcha` and `int l'`; a fraction behind a word and a hyphen (`dog-1/2`);
and that Java, given captions as the lines of one file, looks into the next line for what follows a
full stop.
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
    **dict.fromkeys("€¤₠", "$"),
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
    "&md;": "--",
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
_U = rf"(?:{_W}|&[aeiouAEIOU](?:acute|grave|uml);)"
_A = "['’]"
_NT = r"[nN]['’`][tT](?!\w)"
_LATER = r"(?=[,;:])"
"""What shows that a full stop ends no sentence, and belongs to the word before it."""
_ENDS = r"(?![^\W\d])"
"""What must be behind a full stop that belongs to the word before it: no letter."""
_SMILEY = r"[<>]?[:;=][-o*']?[()DPdpO3@|\]\[{\\]|[-^x=~<>']_[-^x=~<>']"
_SMILEY += r"|\([-^x=~<>'][_.]?[-^x=~<>']\)"
_PHONE = r"(?<!\w)(?:\(\d{2,3}\)\s?|\+\d{2,3}\s|\d{2,4}[\s-])(?:\d{2,4}[\s-])?\d{3,4}[\s-]?\d{3,5}"
_JOINED = "|".join(
    rf"{word[:3]}(?={word[3:]}\b(?!-|{_A}\w|\.{_LATER}))" for word in tables.JOINED.split()
)
_URL = r"""
    (?i:https?)://[^\s"<>|(){}]+[^\s"<>|.!?(){},-]
    | (?:www\.(?:[^\s"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}
        | (?:[^\s"`'<>|.!?(){},-_$]+\.)+(?:com|net|org|edu))
      (?:/[^\s"<>|()]+[^\s"<>|.!?(){},-])?(?!\w)(?:\.(?=[,;:]))?
"""
# What a hyphen joins: with full stops and commas before the first one, with an initialism last.
_HYPHENED = r"(?=[A-Za-z0-9-]*[.,])[A-Za-z0-9][A-Za-z0-9.,]*"
_HYPHENED += rf"(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+(?!{_U})"

_TOKEN = re.compile(
    rf"""
      {_URL}
    | </?[A-Za-z!?][^<>\s]*(?:\s+[^<>\s]+)*\s*/?> | <!--.*?-->       # markup
    | &(?:\#\d+|MD|HT|TL|UR|LR|QC|QL|QR|odq|cdq|(?i:amp|lt|gt|nbsp|mdash|ndash));
    | [A-Za-z0-9][^\s"<>|()]*@(?:[^\s"<>|().]+\.)*[^\s"<>|().]+          # mail
    | @(?=[^\W\d])\w+ | \#[^\W\d_]+
    | [A-Z]+\$                                                       # US$
    | {_PHONE}(?!\w)
    | {_HYPHENED}
    | (?i:{_JOINED})
    | (?i:'t)(?=(?i:is|was)(?:\b|n't\b))
    | {_A}(?:s|m|d|re|ve|ll|S|M|D|RE|VE|LL)(?!\w)
    | {_NT}
    | {_A}(?i:em|til|cause)(?!\w)
    | {_A}[2-9]0s(?!\w) | {_A}\d\d(?=\s|$)                            # '90s
    | {_A}[nN]{_A} | {_A}[nN](?=\s|$)
    | [yY]{_A}(?={_L}) | j{_A}(?={_L}) | [lLdD]{_A}(?=[^\W\dsmdtSMDT](?!{_W}))
    | (?i:{_any(tables.APOSTROPHES.replace("'", _A))}|c'mon)(?!\w) | B{_A}(?i:day)
    | (?i:{_L}*[eo]{_A}er)(?!\w) | (?i:ol|dunkin|somethin){_A}(?!\w)
    | (?:[oOdDlLMJnN]|{_L}*[qQ]u){_A}(?={_L}){_L}{_W}*(?<!['’]s)(?:-{_W}+)*
    | (?:{_SMILEY})(?!\w)
    | [^\W\d_](?:\.[^\W\d_])+(?:\.{_ENDS}|(?!\w))                    # u.s., a.m.
    | (?i:ph\.d)(?:\.|(?!\w)) | (?i:m\.sc|b\.sc|d\.phil)(?:\.{_LATER})?(?!\w)
    | (?:(?i:{_any(tables.ABBREVIATIONS)})|{_any(tables.CAPITALISED)})\.{_ENDS}
    | [A-Za-z]\.(?![^\W\d]|\s+(?:</?[A-Za-z!?]|(?:{_any(tables.STARTERS)})(?=\s|$)))
    | (?i:{_any(tables.NUMBERED)})\.(?=\s*\d)
    | \d+\s\d+/\d+(?![\d/])                                          # 3 1/2
    | \d+\.{_LATER} | \d+⁄\d+ | (?<=/\d)\.\d+
    | \d+[aApP](?=\.[mM]\b) | \d+[A-Za-z](?=\.[A-Za-z]\.)
    | (?:(?<![\w.,)])[-+])?\d*(?:[.,]\d+)*:\d+(?:[.,:]\d+)*              # 5:30pm, :30
    | \d+(?:[.,]\d+)+(?=[^\W\d])
    | [-+]?(?<![\w.,)])\.?\d+(?:[.,:/-]\d+)*(?![^\W{_N}]|[-/&]\w)
    | [.,]\d+(?:[.,]\d+)*
    | \d+(?:[.,:/-]\d+)*(?=['%$])
    | (?:(?!n['’`]t(?!\w)){_W})+?(?={_NT})                               # what n't is cut off
    | [cC]\+\+ | [cCfF]\# | (?i:anti)-(?!\w)
    | [A-Z]+(?:&(?:amp;)?[A-Z]+)+(?:\.{_LATER})?
    | \d+-\d+/\d+(?=-\D)
    | {_W}+(?:-{_W}+)*(?:/{_W}+(?:-{_W}+)*)+
    | {_U}+(?:[-_‐‑](?:[dDoOlL]{_A}(?={_L}{_L}))?{_W}+)+(?:\.{_LATER})?
    | {_U}+(?:\.(?={_L}){_U}+|(?<!\d)[!?](?!\d){_U}+)*(?:\.{_LATER})?
    | \.\s?\.(?!\d)(?:\s?\.(?!\d))*
    | [?!]+
    | -{{2,}} | \*+ | \#+ | _+ | @+
    | ``|''
    | \S
    """,
    re.VERBOSE,
)
# What the jar reads in two: 7:30-ish, 6:45-7:00, +1-555-555.
_TIMED = re.compile(r"(:\d+(?:[.,:]\d+)*)-")
_SIGNED = re.compile(r"(?<![\w.,)])[-+]\d+(?:-\d+)+")
_PAIRS = re.compile("[\U00010000-\U0010ffff]+")
"""Characters beyond the basic plane, whose halves the jar drops."""
_WORD = re.compile(_W)
_SYMBOL = re.compile(f"[{_ranges(tables.SYMBOLS)}]")


def tokens(caption: str) -> list[str]:
    """The words of one caption, lower case, punctuation left out."""
    caption = _QUOTES.sub(lambda found: '"' if found[1].lower() == "quot" else "'", caption)
    caption = _TIMED.sub(r"\1 -", _PAIRS.sub("\ufffd", caption))
    caption = _SIGNED.sub(lambda found: found[0][0] + found[0][1:].replace("-", " -"), caption)
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
