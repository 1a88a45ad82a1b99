"""Scores, each with the protocol that made it."""
