"""The guidance of a command, built around a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.references import Guide, check_guides, is_energy, with_guides
from ..config.build import ConfigError, build
from ..guidance.potentials.clip import NO_TEXT
from ..models.protocols import Denoiser, Energy

__all__ = ["GuidanceBuilder", "find_target", "refuse_missing_texts", "refuse_pixel_potentials"]

PIXEL_POTENTIALS = tuple(f"diffguide.guidance.potentials.{name}." for name in ("clip", "inverse"))

CLIP = "diffguide.guidance.potentials.clip.ClipPotential"


def find_target(node: Any, modules: tuple[str, ...]) -> str | None:
    """The first class of one of these modules in a node, without its module; None where there is none.

    Arguments:
        modules: dotted names that end with a dot.
    """
    parts = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if isinstance(target, str) and target.startswith(modules):
        return target.rpartition(".")[2]
    return next(filter(None, (find_target(part, modules) for part in parts)), None)


def refuse_pixel_potentials(node: Any, key: str) -> None:
    """Raises ConfigError for a potential of pixels in the guidance of a model in latents; `key` is that of the node."""
    if name := find_target(node, PIXEL_POTENTIALS):
        raise ConfigError(
            f"{key}: {name} measures pixels, and this model works in the latents of a first stage, which guidance does not "
            "decode: use a guidance of the model itself, such as guidance=cfg"
        )


def refuse_missing_texts(node: Any) -> None:
    """Raises ConfigError for CLIP guidance without a prompt, of samples that have no texts either."""
    if isinstance(node, Mapping) and node.get("_target_") == CLIP and node.get("prompt") is None:
        raise ConfigError(NO_TEXT)
    for part in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        refuse_missing_texts(part)


class GuidanceBuilder:
    """builder(model, device) -> guided model. An energy is returned unchanged: its labels are its guidance.

    Arguments:
        node: of the guidance, resolved.
        trust: dotted names of classes outside diffguide that checkpoints may build.
        shape: of one example.
        class_names: of the data.
        latents: whether the examples are latents of a first stage, which guidance does not decode.

    Attributes:
        references: trained models in the guidance of the last call.
    """

    def __init__(
        self,
        node: Mapping[str, Any],
        trust: Sequence[str],
        shape: Sequence[int],
        class_names: Sequence[str],
        latents: bool = False,
    ):
        if latents:
            refuse_pixel_potentials(node, "guidance")
        self.node = node
        self.trust = trust
        self.shape = shape
        self.class_names = class_names
        self.references: list[Guide] = []

    def __call__(self, model: Denoiser | Energy, device: Any, inner: Denoiser | Energy | None = None):
        """The guided model.

        Arguments:
            model: to guide.
            device: of the trained models in the guidance.
            inner: wrapped in place of the model, such as a counter around it.

        Raises:
            ConfigError: models that do not fit each other, or an energy with guidance.
        """
        inner = model if inner is None else inner
        try:
            node, self.references = with_guides(self.node, "guidance", device, self.trust)
            check_guides(self.references, self.shape, self.class_names)
            if is_energy(model, node):
                return inner
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return build(node, "guidance", inner)
