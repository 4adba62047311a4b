"""Checkpoints: reading and writing them, validating what they hold, allowing what they may build."""
