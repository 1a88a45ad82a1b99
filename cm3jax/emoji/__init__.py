"""Emoji: real images by four artists, as a dataset with ground truth, and a reader of them."""
