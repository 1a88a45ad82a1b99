"""What one training step and one training run are made of."""
