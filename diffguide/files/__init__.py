"""Files: versioned run folders, sealed safetensors, shards of a sampling run, metrics.jsonl. All writes are atomic."""
