"""The guidance of a command, built around a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.references import Guide, check_guides, is_energy, with_guides
from ..config.build import ConfigError, build
from ..models.protocols import Denoiser, Energy

__all__ = ["GuidanceBuilder"]


class GuidanceBuilder:
    """builder(model, device) -> guided model. An energy is returned unchanged: its labels are its guidance.

    Arguments:
        node: of the guidance, resolved.
        trust: dotted names of classes outside diffguide that checkpoints may build.
        shape: of one example.
        class_names: of the data.

    Attributes:
        references: trained models in the guidance of the last call.
    """

    def __init__(self, node: Mapping[str, Any], trust: Sequence[str], shape: Sequence[int], class_names: Sequence[str]):
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
