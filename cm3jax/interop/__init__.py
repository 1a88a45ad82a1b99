"""Foreign weights <-> ours."""
