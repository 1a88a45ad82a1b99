"""The miniature on real images: emoji of four artists, whose names training holds out."""
