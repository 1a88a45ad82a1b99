"""CM3Leon and its rivals in miniature: one corpus, one size, as many tokens of training.

What they share is in `shared.py`; each of the others states what makes its model.
"""
