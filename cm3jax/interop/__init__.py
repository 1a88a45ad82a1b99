"""Foreign weights to ours and back; needs no network, and torch only to read pickled files."""
