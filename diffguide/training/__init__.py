"""The training loop, its batches and learning rates."""
