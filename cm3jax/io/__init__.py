"""Files: atomic writes, checksums, numbered records, shards, safetensors, experiments as JSON."""
