"""A run of ten steps, of which tests of resuming take copies (the fixtures short_run and unfinished)."""

from pathlib import Path

RUN = Path("outputs/train/digits/v001")
SMALL = ["backbone.channels=8", "backbone.head_channels=8", "backbone.multipliers=[1]", "backbone.attention=[8]",
         "backbone.blocks=1", "sampler.steps=2"]  # fmt: skip
SHORT = [*SMALL, "training.batch_size=32", "training.images=320", "training.checkpoint_images=96",
         "training.log_images=80", "training.validation_images=128"]  # fmt: skip
