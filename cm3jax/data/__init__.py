"""Raw data to training batches."""
