"""Prefill, compiled chunks, sampling and guidance."""
