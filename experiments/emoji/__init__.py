"""The miniature on real pictures: emoji of four artists, whose names training holds out."""
