"""The Flax modules: decoder, tokenizer bridge, sequence builder."""
