"""Makes `words.json.gz`: the words of odd captions, by Stanford's tokenizer in Java.

    pip install pycocoevalcap==1.2   # and a Java runtime
    python tests/evaluate/reference/make_words.py

A list of [caption, its words with spaces between]. Each caption goes to Java with a plain line
after it, since the jar looks into the next line for what follows a full stop.
"""

import gzip
import json
import random
from pathlib import Path

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

HERE = Path(__file__).parent
COUNT = 2400

# fmt: off
PLAIN = [
    "man", "woman", "dog", "cat", "bus", "bike", "pizza", "surfer", "T-shirt", "x-ray", "kitchen",
    "rides", "holds", "eats", "can't", "won't", "isn't",
]
SIGNS = [
    "😀", "\u2764\ufe0f", "🐶", "👍🏽", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "🇫🇷", "☺",
    "★", "✓", "→", "😂😂", "🎉!", "♥", "™", "®", "©", "°",
]
TIMES = [
    "5:30", "5:30pm", "5pm", "5 p.m.", "5:30 p.m.", "10am", "9 a.m.", "9:00AM", "12:15:30",
    "at 7:00 PM.", "5 P.M.", "5:30p.m.", "1980's", "'80s", "80s", "the '90s", "mid-1990s",
    "2 o'clock", "24/7", "3-4pm", "10-11 a.m.",
]
APOSTROPHES = [
    "'em", "get 'em", "'til", "'cause", "'n'", "rock'n'roll", "rock 'n roll", "o'er", "ne'er",
    "ol'", "goin'", "'bout", "d'you", "y'all", "ya'll", "ain't", "shan't", "mightn't", "who's",
    "let's", "he'd've", "should've", "I'm", "'twas", "'Tis", "O'Neill", "l'eau", "d'Artagnan",
    "c'mon", "ma'am", "o'clock", "fo'c'sle", "Hallowe'en", "'Twas", "'tisn't", "Cap'n", "dunno",
    "gonna", "wanna", "gimme", "lemme", "gotta", "whaddya", "wanna-be", "cannot", "Cannot",
    "more'n", "'s", "dogs'", "James's", "the boys' bus", "' quoted '", "it's'", "'hello'",
    "''double''", "``back''", "“curly”", "‘single’", "„low“", "«guillemets»", "‹a›", "‚x’",
]
ABBREVIATIONS = [
    "Mr.", "Mrs.", "Dr.", "St.", "Ave.", "Blvd.", "etc.", "e.g.", "i.e.", "vs.", "U.S.", "U.S.A.",
    "U.K.", "a.k.a.", "D.C.", "Inc.", "Co.", "Corp.", "Ltd.", "Jr.", "Sr.", "Jan.", "Feb.",
    "Sept.", "Mon.", "No.", "no. 5", "No. 5", "Fig. 2", "p. 12", "pp. 3-4", "approx.", "ft.",
    "in.", "lb.", "lbs.", "oz.", "hr.", "hrs.", "min.", "sec.", "mi.", "mph.", "cm.", "kg.",
    "Mt.", "Ft.", "Rd.", "Hwy.", "Apt.", "Dept.", "Prof.", "Gen.", "Col.", "Lt.", "Sgt.", "Capt.",
    "Gov.", "Sen.", "Rep.", "Rev.", "Hon.", "Pres.", "N.Y.", "L.A.", "Calif.", "Ill.", "Mass.",
    "Wash.", "Ph.D.", "M.D.", "B.A.", "J.R.R.", "T.V.", "tv.", "P.S.", "R.I.P.", "et al.", "cf.",
    "ca. 1900", "c. 1900", "Messrs.", "Ms.", "Mx.", "Bros.", "est.", "Esq.", "ext.", "tel.",
    "Vol. 2", "Nos. 3", "A.", "b.", "I.", "x.", "Oct. 5", "Wed.", "U.N.", "E.U.", "ed.", "al.",
    "Ga.", "Pa.", "Fla.", "Ariz.",
]
NUMBERS = [
    "1/2", "3 1/2", "½", "1½", "¼ cup", "¾", "⅓", "⅔", "2⅛", "1/2-inch", "10/12/2014", "5/6",
    "a 3/4 view", "1 1/2-inch", "1-1/2", "2-1/4", "½-full", "1⁄2", "0.5", "1.5", "3,000",
    "3,000.50", "1.000,50", ".5", "-5", "+5", "-0.5", "$5", "$5.00", "5$", "£5", "€5", "¥500",
    "5¢", "50%", "50 %", "#1", "#tag", "1st", "2nd", "3rd-place", "4x4", "2x4", '5\'10"',
    '6\' 2"', "6ft", "10kg", "100°F", "5°", "20°C", "10^2", "2+2=4", "1:1", "16:9", "3-2", "0-0",
    "1,2,3", "1.2.3", "555-1234", "(555) 123-4567", "555.123.4567", "+1 555 123 4567",
    "1-800-555-1234", "90210", "B-52", "747-400", "A380", "MP3", "H2O", "CO2", "R2-D2", "3D",
    "3-D", "2D.", "7-Eleven", "7-11", "20-year-old", "20 - 30", "20–30", "20—30", "10th.", "½'s",
    "1/2s",
]
MARKUP = [
    "&amp;", "a &amp; b", "&lt;b&gt;", "&quot;hi&quot;", "&apos;s", "&nbsp;", "&#39;s", "&#x27;",
    "&mdash;", "<b>bold</b>", "<br>", "<br/>", '<a href="x">', "</p>", "<3", "<-", "->", "=>",
    "<>", "AT&T", "B&B", "B & B", "R&B", "M&M's", "M&Ms", "Q&A", "cats&dogs", "&", "&&", "a&b",
    "A&E", "black&white", "P&G.", "Ben & Jerry's", "H&M", "S&P 500", "&c.", "AT&amp;T", "B&amp;B",
]
MARKS = [
    "...", "....", "..", ". . .", "…", "?!", "!!!", "??", "!?", "--", "---", "-", "–", "—",
    "—wow", "_", "__", "~", "*", "**bold**", "|", "\\", "/", "//", "and/or", "his/her", "w/",
    "w/o", "c/o", "@", "@user", "user@mail.com", "http://x.com/a?b=c", "www.cnn.com", "cnn.com",
    "x.com.", "file.txt", "a.b", "end.Start", "hello,world", "a;b", "a:b", ":)", ":-)", ":(",
    ";)", ":D", "XD", "^_^", "=)", "<3", ":P", ":'(", "8)", "(large)", "[sic]", "{x}", "(a)",
    "1)", "a)", "(1)", "''", '"', '""', "'", "''x''", '"x"', "`", "``", "`x'", "´", '"a"b', "(:",
    "#", "##", "%", "$", "+", "=", "^", "a+b", "x=y", "C++", "C#", "F#", ".NET", "Node.js",
    "iPhone", "e-mail", "co-op", "ex-wife", "well-known", "mother-in-law", "black-and-white",
    "hot-dog.", "-dash", "dash-", "semi - colon", "non‑breaking", "soft\xadhyphen",
    "zero\u200bwidth", "no\xa0break", "tab\tbed", "thin\u2009space", "ideo\u3000space", "café",
    "naïve", "Ünïcode", "日本語", "한국어", "Привет", "ñandú", "ﬁsh", "œuvre", "straße", "İstanbul",
    "Ελλάδα", "שלום", "مرحبا", "ไทย", "x²", "m²", "H₂O", "½", "№5", "§5", "¶", "†", "•", "·", "×",
    "2×4", "÷", "±5", "≈5", "≤", "∞", "√2", "µm", "Å", "ª", "1º", "n°5", "e\u0301te", "ﷺ", "𝓪",
    "\ufeffbom", "--a--", "a--b", "a -- b", "well--known", "...and", "and...", "wait...what",
    "Yahoo!", "Yahoo!'s", "Jeopardy!", "Guess?", "E!", "AT&T's", "U.S.'s", "1990s'", "Mr.Smith",
    "Mr", "Dr", "St", "a.m", "p.m", "pm.", "AM.", "U.S", "US.", "US", "e.g", "eg.", "ie.", "etc",
    "etc..", "etc...", "U.S...", "Inc...", "no.", "No.", "No. One", "Fig. A",
]
PHRASES = [
    "two (2) dogs", "a man's best-friend", "at the U.S. Open", "St. Patrick's Day", "Coca-Cola",
    "McDonald's", "7-Up", "Dr. Pepper", "a ~20 year old", '6\'2" tall', "#1 fan", "@ the beach",
    "w/ fries", "B&W photo", "R&B singer", "black & white", "rock 'n' roll", "the '60s",
    "'60s-style", "mid-'90s", "1950's", "No. 7 jersey", "number 7", "# 7", "Vol. 3", "9/11",
    "24/7", "5k run", "10K", "half-pint", "1/2 pint", "3 1/4 miles", "5-6 people", "5 - 6 people",
    "(left)", "[left]", "{left}", "<left>", '"STOP"', "''STOP''", "`STOP`", "STOP!", "stop!!",
    "really?!", "hmm...", "hmm..", "so,so", "this/that", "him/her.", "e.g. cats", "i.e. dogs",
    "etc.)", "(etc.)", "a.k.a. Bob", "vs. them", "Mr. & Mrs. Smith", "Jr.'s bike", "Sr., Jr.",
    "U.K.-made", "U.S.A.!", "p.m.?", "10 a.m.-5 p.m.", "10a.m.", "10 am", "10:30am-11pm",
    "12'o clock", "o'clock", "o' clock", "ma'am", "y'all're", "it'll", "she'd", "they've",
    "I'd've", "who'd", "what're", "there's", "that's", "let's", "ain't", "dont", "can not",
    "cannot", "gonna", "kinda", "'em!", "get'em", "go get 'em.", "'tis", "'twas", "c'mon!",
    "d'oh", "O'Reilly", "D'Angelo", "L'Oreal", "J'adore", "qu'est", "rock-n-roll", "mac n cheese",
    "mac 'n cheese", "mac n' cheese", "drive-thru", "x-ray", "T-shirts", "t-shirt's", "iPod",
    "iPhone5", "PS3", "Wi-Fi", "wi-fi.", "Blu-ray", "4x4", "2x", "x2", "3D", "1080p", "720p.",
    "50mm", "f/2.8", "1/250s", "ISO-400", "100%", "100 percent", "99.9%", "$9.99", "$1,000,000",
    "$5 - $10", "$5-$10", "€10", "£3.50", "5¢", "75°", "75°F", "-5°C", "+/-", "+-", "a=b", "a+b",
    "1+1=2", "2^3", "a*b", "*sigh*", "_under_", "~wave~", "^up^", "|bar|", "\\back", "/slash",
    "http://a.b/c", "https://x.com/a-b?c=d&e=f", "www.x.co.uk", "x.com/y", "me@x.com", "@me",
    "#hash_tag", "#2013", "RT @user:", ":-)", "xD", "<3", "=)", "(:", "😀smile", "smile😀",
    "👍🏽👍🏽", "\u2764\ufe0f\u2764\ufe0f", "\u2600\ufe0f", "✨", "é", "naïve", "señor", "Zoë",
    "Ångström",
    "façade", "crème brûlée", "schön", "日本", "寿司", "ラーメン", "한글", "русский", "עברית",
    "العربية", "\u0939\u093f\u0928\u094d\u0926\u0940", "ไทย",
    "½", "1½", "2½-inch", "¼-full", "x²", "CO₂",
    "10³", "™", "©2013", "®", "§3", "№ 5", "«oui»", "‹si›", "„ja“", "‚da‘", "‘no’", "“yes”",
    "—dash—", "–dash–", "a—b", "a–b", "a…b", "…", "·dot·", "•bullet", "→right", "←", "★★★", "♥",
    "♪♫", "✓", "✗", "×", "÷", "≠", "≥", "∞", "π", "µ", "Ω", "don´t", "don`t", "don’t", "’90s",
    "’em", "‘em", "rock ’n’ roll", "O’Neil", "&amp;", "&lt;3", "&gt;", "&quot;x&quot;", "&#39;",
    "&nbsp;", "AT&amp;T", "R&amp;B", "<i>x</i>", "<p>", "</div>",
]
# fmt: on
POOLS = [SIGNS, TIMES, APOSTROPHES, ABBREVIATIONS, NUMBERS, MARKUP, MARKS, PHRASES, PHRASES]
AROUND = ["{}", "a {} dog", "{} a dog", "dog {}.", "dog {}, then", "({})", '"{}"', "{}..."]

MORE_AROUND = [*AROUND, "A {} Dog", "the {}!", "{}: a dog", "{}'s dog", "letter B. The {}"]


def captions() -> list[str]:
    """Every odd word once in some surroundings, then many together."""
    rng = random.Random(5)
    singles = [rng.choice(AROUND).format(word) for pool in POOLS[:-1] for word in pool]
    mixed = []
    for _ in range(COUNT - len(singles)):
        words = [
            rng.choice(rng.choice(POOLS)) if rng.random() < 0.4 else rng.choice(PLAIN)
            for _ in range(rng.randint(3, 7))
        ]
        mixed.append(" ".join(words) + rng.choice(["", ".", "!", "?", ",", "...", ")"]))
    return singles + mixed


def more() -> list[str]:
    """Every word of `odd_words.txt` in three surroundings, then many together."""
    rng = random.Random(6)
    words = (HERE / "odd_words.txt").read_text(encoding="utf-8").split()
    singles = [place.format(word) for word in words for place in rng.sample(MORE_AROUND, 3)]
    mixed = [
        " ".join(rng.choice(words if rng.random() < 0.4 else PLAIN) for _ in range(5))
        for _ in range(1000)
    ]
    return singles + mixed


def main() -> None:
    lines = [*captions(), *more()]
    asked = {i: [{"caption": line}, {"caption": "z"}] for i, line in enumerate(lines)}
    found = PTBTokenizer().tokenize(asked)
    value = [[line, found[i][0]] for i, line in enumerate(lines)]
    content = json.dumps(value, ensure_ascii=False).encode()
    (HERE / "words.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    print(len(value), "captions")


if __name__ == "__main__":
    main()
