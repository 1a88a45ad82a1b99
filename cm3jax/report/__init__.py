"""Pages of a run: HTML, plots, samples."""
