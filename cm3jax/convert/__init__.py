"""Foreign weights to ours and back; needs neither torch nor the network."""
