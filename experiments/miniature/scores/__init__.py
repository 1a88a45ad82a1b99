"""Exact scores of models of the miniature, and the quickstart's page."""
