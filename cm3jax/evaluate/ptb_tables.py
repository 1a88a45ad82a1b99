"""What Stanford's PTBTokenizer (CoreNLP 3.4.1) holds of single words and characters.

The characters are those of the basic plane as the jar takes them apart (`tests/evaluate/reference/
make_words.py` asks it).
"""

JOINED = "cannot gonna wanna gotta gimme lemme"
"""Words that are two, the first of three letters; one where a hyphen follows."""
APOSTROPHES = """
ne'er e'er ol' hallowe'en cap'n nat'l ev'ry s'mores li'l o'er ma'am n'est c'est
"""
"""Words that are one."""

# A full stop belongs to these; to those of the second line where they begin with a capital, to
# those of the third where a number follows.
ABBREVIATIONS = """
adj adm adv al ala apr ariz assn asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt
cf cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs esq est etc ext feb fla fri
ft ga gen gov govs hon inc ind intl jan jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich
minn mlle mme mo mon mont mr mrs ms mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pty
pvt rd rep reps rev rt sen sens sep sept seq sgt spc sq sr st ste supt supts sys tel tenn thu thurs
treas tue tues univ va vs vt wed wis wisc wyo
"""
CAPITALISED = " Ark Del Ill La Mass Miss Ore Pa Tex Wash"
CAPITALISED += CAPITALISED.upper()
NUMBERED = "art ca fig figs no nos op pp"
STARTERS = """
A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
More Now Once One Other Our She Since So Some Such That The Their Then There These They This We
What When While Yet You
"""
"""Words that show a full stop behind a single letter to be the end of a sentence."""

MARKS = """
02c2-02c5 02d2-02db 02dd-02df 02e5-02eb 02ed 02ef-02ff 0375 0384-0385 03f6 055a-055f 06fd-06fe 070f
0300-036f 0483-0487 0591-05bd 05bf 05c1-05c2 05c4-05c5 05c7 0615-061a 064b-065e 0670 06d6-06ed
0711-07b0 07eb-07f3 0900-0903 093c-094e 0951-0955 0962-0963 0981-0983 09bc-09c4 09c7-09c8
09cb-09cd 09d7 09e2-09e3 0a01-0a03 0a3c 0a3e-0a4d 0a81-0a83 0abc-0acd 0b82 0bbe-0bc2 0bc6-0bc8
0bca-0bcd 0c01-0c03 0c3e-0c56 0d3e-0d44 0d46-0d48 0e31-0e3a 0e47-0e4e 0eb1-0ebc 0ec8-0ecd
1885-1886
"""
"""Ranges of marks and signs that are parts of words like letters, in hexadecimal."""
NUMERALS = """
00b2-00b3 00b9 00bc-00be 09f4-09f9 0b72-0b77 0bf0-0bf2 0c78-0c7e 0d58-0d5e 0d70-0d78 0f2a-0f33
1369-137c 16ee-16f0 17f0-17f9 19da 2070 2074-2079 2080-2089 2150-2182 2185-2189 2460-249b
24ea-24ff 2776-2793 2cfd 3007 3021-3029 3038-303a 3192-3195 3220-3229 3248-324f 3251-325f
3280-3289 32b1-32bf a6e6-a6ef a830-a835
"""
"""Ranges of numbers that are not digits, and words of their own or nothing."""
SYMBOLS = """
0023-0026 002a-002b 002f 003c-003e 0040 005c 005e-005f 007c 007e 00a1 00a5-00a9 00ac 00ae-00b4
00b6-00b9 00bf 00d7 00f7 02dc 037e 0387 0589 05be 05c0 05c3 05c6 05f3-05f4 0600-0603 0606-060c 0614
061b 061e-061f 066a 066d 06d4 0700-070d 07f6-07f8 0964-0965 0e3f 0e4f 1fbd 2016-2017 201a
201e-2023 2030-2038 203b 203e-2042 2044 2070 2074-207e 2080-208e 20a4 2100-2101 2103-2106
2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f
2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1
ffe5-ffe6
"""
"""Ranges of what is a word of its own; other characters than letters and digits are nothing."""
