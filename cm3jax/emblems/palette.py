"""Colours of the emblems images: backgrounds, the colours of things, and skin, all far apart."""

RGB = tuple[int, int, int]

BACKGROUNDS: dict[str, RGB] = {
    "white": (250, 250, 250),
    "black": (20, 20, 25),
    "sand": (215, 190, 145),
    "sky": (140, 195, 235),
}
"""Backgrounds. No thing has one of these colours."""

COLOURS: dict[str, RGB] = {
    "red": (205, 25, 40),
    "green": (30, 150, 70),
    "blue": (30, 80, 210),
    "yellow": (255, 225, 40),
    "purple": (140, 40, 170),
    "orange": (250, 130, 10),
}
"""Colours of shapes and of the patterns in emblems."""

SKIN: RGB = (165, 95, 75)
"""The colour of palms."""

INK: dict[str, str] = {"white": "black", "black": "white", "sand": "black", "sky": "black"}
"""The ink of printed letters on each background, itself the name of a background colour."""
