"""Readers of raw data: each gives undecoded records by number, from files of one kind."""
