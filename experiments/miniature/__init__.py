"""The miniature: every part of CM3Leon at a size that trains on two CPU cores."""
