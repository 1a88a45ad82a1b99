"""Text and images to ids and back."""
