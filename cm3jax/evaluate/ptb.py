"""Words of captions as the Penn Treebank splits them, without Java.

COCO's caption scores are defined on the output of Stanford's PTBTokenizer (CoreNLP 3.4.1, lower
case) less its punctuation. This follows its rules as far as captions need them; what it prints for
phone numbers, emoticons and markup is not followed.
"""

import re

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
    {"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--", "\u00a0": " "}
)

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
}

# A full stop belongs to these; to those of the second line where they begin with a capital, to
# those of the third where a number follows.
_ABBREVIATIONS = """
adj adm adv al ala apr ariz assn asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt
cf cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs esq est etc ext feb fla fri
ft ga gen gov govs hon inc ind intl jan jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich
minn mlle mme mo mon mont mr mrs ms mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt
rd rep reps rev rt sen sens sep sept seq sgt spc sq sr st ste supt supts sys tel tenn thu thurs
treas tue tues univ va vs vt wed wis wisc wyo
"""
_CAPITALISED = " Ark Del Ill La Mass Miss Ore Pa Tex Wash"
_CAPITALISED += _CAPITALISED.upper()
_NUMBERED = "art ca fig figs no nos op pp"


def _any(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


_TOKEN = re.compile(
    rf"""
      https?://[^\s<>"]*[^\s<>".,;:!?()\[\]]
    | [\w.+-]+@\w+(?:[.-]\w+)+                                  # mail
    | [@#](?=[^\W\d])\w+
    | (?i:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|gim(?=me\b)|lem(?=me\b)|'t(?=is\b|was\b))
    | '(?:s|m|d|re|ve|ll|S|M|D|RE|VE|LL)(?!\w)
    | [nN]'[tT](?!\w)
    | '\d\ds?(?![\w"])                                          # '90s
    | '[nN]'(?=\W|[rR]oll|$) | (?<=\w)'[nN](?!\w)
    | [yY]'(?=[aA]ll\b)
    | (?:[oOdDlL]'|[mM]a'(?=am\b))[^\W\d]\w*(?<!'s)             # o'clock, d'or, ma'am
    | [^\W\d_](?:\.[^\W\d_])+(?:\.(?!\w)|(?!\w))                # u.s., a.m.
    | (?:(?i:{_any(_ABBREVIATIONS)}|[a-z])|{_any(_CAPITALISED)})\.(?!\w)
    | (?i:{_any(_NUMBERED)})\.(?=\s+\d)
    | \d+\s\d+/\d+(?![\w/])                                     # 3 1/2
    | [-+]?(?<![\w.,)])\.?\d+(?:[.,:/-]\d+)*(?!\w|[-/&]\w)      # numbers
    | \d+(?:[.,:/-]\d+)*(?=['%$])
    | (?:(?!n't(?!\w))\w)+?(?=n't(?!\w))                        # what n't is cut off
    | [cC]\+\+ | [cCfF]\#
    | \w+(?:[-_./&]\w+)*(?:-(?=\s|$))?(?<!-)
    | \w+
    | \.\s?\.(?:\s?\.)*
    | [?!]+
    | -{{2,}}
    | ``|''
    | \S
    """,
    re.VERBOSE,
)


def tokens(caption: str) -> list[str]:
    """The words of one caption, lower case, punctuation left out."""
    found = (_spelled(token) for token in _TOKEN.findall(caption.translate(_ALIKE)))
    return [token for token in found if token not in _APART]


def _spelled(token: str) -> str:
    if token[0] == "." and set(token) <= {".", " "}:
        return "..." if len(token) > 1 else "."
    if token[0] == "-" and set(token) == {"-"}:
        return "--" if len(token) > 1 else "-"
    return _SPELLED.get(token, token.lower().replace(" ", "\u00a0"))
