"""Prompts in, documents out: requests, generators and what they return."""
