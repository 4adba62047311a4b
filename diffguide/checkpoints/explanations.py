"""What a user should know of a loaded checkpoint, in one line each."""

from .store import Loaded

__all__ = ["explain_origin", "explain_untrained"]


def explain_untrained(loaded: Loaded) -> str | None:
    """Why the samples of a model are noise: it was trained for fewer images than its warm-up has. None where it was not."""
    training = loaded.config.get("training")
    warmup = training.get("warmup_images", 0) if isinstance(training, dict) else 0
    images = loaded.facts["images"]
    if loaded.facts.get("origin") is not None or loaded.config.get("ancestry"):  # trained by another program, or before
        return None
    if images and not (type(warmup) is int and images < warmup):
        return None
    seen = f"saw {images} images, fewer than the {warmup} of its warm-up" if images else "saw no image: it is untrained"
    return f"this checkpoint {seen}; its samples are noise, and its figures are meaningless"


def explain_origin(loaded: Loaded) -> str:
    """What a folder of diffusers says of its own sampler and is not taken over, in one line; "" where there is nothing."""
    settings = ", ".join((loaded.facts.get("origin") or {}).get("settings") or ())
    return settings and f"its scheduler sets {settings} for a sampler of its own: not taken over, see configs/README.md"
