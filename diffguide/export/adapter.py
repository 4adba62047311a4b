"""An adapter alone, without the network that it was trained beside, as the libraries peft and diffusers read it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
from torch import nn

from ..backbones.lora import LoRA, adapted_network
from ..checkpoints.adapter_files import HEADER_KEY, PREFIX, WEIGHTS_FILE
from ..checkpoints.store import Loaded
from ..files.run_folders import write_atomically
from .description import describe
from .errors import ExportError
from .formats import Format, write_model_json
from .paths import shorten_paths

__all__ = ["PeftAdapter"]

README = """# {name}

Low-rank matrices (LoRA, arXiv 2106.09685) that change a trained {network}: W x + b becomes W x + b + {alpha:g} / {rank} B A x.
The network is not in this folder. {base}

```python
from peft import PeftModel

network = PeftModel.from_pretrained(network, ".")  # network: the {network}
```
{diffusers}
With diffguide: `checkpoint=<the network> adapter=<this folder>`, and `adapter_scale=0.5` for half its strength. Written by
diffguide, whose convention and noise levels are in `diffguide.json`.
"""
DIFFUSERS = """
In diffusers, where the class of the network has `load_lora_adapter`:
`network.load_lora_adapter(".", prefix="{prefix}", weight_name="{file}")`.
"""


class PeftAdapter(Format):
    """adapter_model.safetensors and adapter_config.json of a run of training/adapter=lora, for peft and diffusers.

    Arguments:
        weights: as in `Format`.
    """

    option: ClassVar[str] = "lora"
    merges_adapter: ClassVar[bool] = False

    def write(self, loaded: Loaded, folder: Path) -> None:
        backbone = getattr(loaded.model, "backbone", None)
        if not isinstance(backbone, LoRA):
            raise ExportError(
                "to=lora takes runs of training/adapter=lora, and this checkpoint has no adapter of its own"
            )
        if backbone.trains_classes:
            raise ExportError(
                "to=lora takes matrices only, and this run trained rows of classes too (training.adapter.trains_classes=true): "
                "to=safetensors takes the whole network"
            )
        network = adapted_network(backbone.network)
        tensors = {
            PREFIX + name.replace(".default.", "."): value.detach().cpu().contiguous()
            for name, value in network.state_dict().items()
            if ".lora_" in name
        }
        settings = write_config(
            backbone, {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}, folder
        )
        header = {"format": "pt", HEADER_KEY: json.dumps({PREFIX + key: value for key, value in settings.items()})}
        write_atomically(folder / WEIGHTS_FILE, lambda path: safetensors.torch.save_file(tensors, path, header))
        write_model_json(folder, describe(loaded, self.weights), "diffguide.json")
        (folder / "README.md").write_text(readme(loaded, backbone, network), encoding="utf-8")


def write_config(backbone: LoRA, layers: Iterable[str], folder: Path) -> dict[str, Any]:
    """Writes adapter_config.json; returns the settings that say how the matrices change the layers."""
    from peft import LoraConfig

    settings: dict[str, Any] = {"r": backbone.rank, "lora_alpha": backbone.alpha, "target_modules": sorted(layers)}
    LoraConfig(**settings, lora_dropout=backbone.dropout, inference_mode=True).save_pretrained(str(folder))
    return settings


def readme(loaded: Loaded, backbone: LoRA, network: nn.Module) -> str:
    """README.md of the folder."""
    ancestry = shorten_paths(loaded.config.get("ancestry") or {})
    known = f"Its file {ancestry['checkpoint']} has the SHA-256 {ancestry['sha256']}." if ancestry else ""
    if "adapter" in ancestry:
        known += f" {ancestry['adapter_scale']:g} times the adapter {ancestry['adapter']} was added to it before."
    loads = hasattr(network, "load_lora_adapter")
    return README.format(
        name=loaded.config.get("name") or "adapter",
        network=type(network).__name__,
        alpha=backbone.alpha,
        rank=backbone.rank,
        base=known,
        diffusers=DIFFUSERS.format(prefix=PREFIX.rstrip("."), file=WEIGHTS_FILE) if loads else "",
    )
