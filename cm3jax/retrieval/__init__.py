"""CLIP, the memory bank, its indexes and the selection policy."""
