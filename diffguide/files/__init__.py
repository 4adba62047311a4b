"""Files: versioned run folders, sealed safetensors, shards of a sampling run, metrics.jsonl. Whole or absent, never half."""
