"""A model as a folder that the library diffusers loads and samples."""

import json
from pathlib import Path
from typing import Any, ClassVar

from ..backbones.diffusers_network import DiffusersNetwork
from ..checkpoints.store import Loaded
from ..files.run_folders import write_atomically
from ..models.preconditioned import Preconditioned
from .description import describe
from .diffusers_scheduler import OTHERS, scheduler_settings
from .errors import ExportError
from .formats import Format, write_model_json
from .programs import check_network

__all__ = ["DiffusersPipeline"]

PIPELINES = {"UNet2DModel": ("DDPMPipeline", "unet"), "DiTTransformer2DModel": ("DiTPipeline", "transformer")}
ABOUT = """# {name}

`{part}` is a trained {network} of diffusers, and `scheduler` the law of its noise:
`{network}.from_pretrained("{part}")` and `{scheduler}.from_pretrained("scheduler")`. Written by diffguide, whose
convention and noise levels are in `diffguide.json`.

{use}
- The scheduler clips nothing{clips}.{steps}
- Labels are rows of the network's class table: {labels}
"""
CLIPS = {
    "plain": "; data are nominally in [-1, 1], and the pipeline clips its images",
    "classes": "; data are nominally in [-1, 1]",
    "dit": "",
}
STEPS = "\n- The number of steps should divide {steps}: diffusers rounds the length of a step down."
USES = {
    "plain": """`DDPMPipeline.from_pretrained(folder)` samples it:

```python
from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained(".")(batch_size=4, num_inference_steps=50, output_type="np").images
```
""",
    "classes": """`DDPMPipeline` passes no classes to its network, so the sampler is a loop:

```python
import torch
from diffusers import {scheduler}, UNet2DModel

network, scheduler = UNet2DModel.from_pretrained("unet"), {scheduler}.from_pretrained("scheduler")
scheduler.set_timesteps(50)
rows = torch.zeros(4, dtype=torch.long)
x = torch.randn(4, {shape})
for t in scheduler.timesteps:
    with torch.no_grad():
        x = scheduler.step(network(x, t, class_labels=rows).sample, t, x).prev_sample
```
""",
    "dit": """`DiTPipeline.from_pretrained(folder, vae=vae)` samples it, with the autoencoder of its data, which is not in this
folder. Its guidance takes row 1000 for no class, whatever the network has: with {rows} classes, {guidance}.
""",
}


class DiffusersPipeline(Format):
    """A folder for `DDPMPipeline` (UNet2DModel) or `DiTPipeline` (DiTTransformer2DModel), with the law of the network's levels.

    Arguments:
        weights: as in `Format`.
    """

    option: ClassVar[str] = "diffusers"

    def write(self, loaded: Loaded, folder: Path) -> None:
        model = check_network(loaded.model, self.option)
        backbone = model.backbone
        if not isinstance(backbone, DiffusersNetwork) or backbone.name not in PIPELINES:
            name = backbone.name if isinstance(backbone, DiffusersNetwork) else type(backbone).__name__
            raise ExportError(
                f"to=diffusers takes networks of diffusers, {' and '.join(PIPELINES)}, and this one is a {name}: {OTHERS}"
            )
        pipeline, part = PIPELINES[backbone.name]
        scheduler = build_scheduler(model, backbone)
        backbone.network.save_pretrained(folder / part, safe_serialization=True)
        write_atomically(folder / part / "config.json", lambda path: path.write_text(network_config(backbone)))
        scheduler.save_pretrained(folder / "scheduler")
        index: dict[str, Any] = {
            "_class_name": pipeline,
            part: ["diffusers", backbone.name],
            "scheduler": ["diffusers", type(scheduler).__name__],
        }
        if backbone.num_classes:
            index["id2label"] = {
                str(table_row(backbone, k)): name for k, name in enumerate(loaded.facts["class_names"])
            }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_model_json(folder, describe(loaded, self.weights), "diffguide.json")
        (folder / "README.md").write_text(readme(loaded, backbone, part, scheduler), encoding="utf-8")


def table_row(backbone: DiffusersNetwork, label: int) -> int:
    """The row of a class in the network's table, which may have the null row before it."""
    return label + (backbone.null_class is not None and label >= backbone.null_class)


def network_config(backbone: DiffusersNetwork) -> str:
    """config.json of a network, without the name of the place that it was loaded from."""
    config = json.loads(backbone.network.to_json_string())
    return json.dumps({key: value for key, value in config.items() if key != "_name_or_path"}, indent=2) + "\n"


def build_scheduler(model: Preconditioned, backbone: DiffusersNetwork) -> Any:
    """The scheduler of a pipeline: ancestral for U-Nets, DDIM for DiT, whose pipeline drops the learned variance."""
    import diffusers

    family, settings = scheduler_settings(backbone.timesteps, model.parameterization, model.schedule)
    if family == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    settings |= {"clip_sample": False, "timestep_spacing": "trailing"}
    if backbone.name == "DiTTransformer2DModel":
        return diffusers.DDIMScheduler(**settings)
    if backbone.learned_variance:  # trailing spacing would leave noise of the learned variance in the data
        settings |= {"variance_type": "learned_range", "timestep_spacing": "linspace"}
    return diffusers.DDPMScheduler(**settings)


def readme(loaded: Loaded, backbone: DiffusersNetwork, part: str, scheduler: Any) -> str:
    """README.md of the folder."""
    rows, name = backbone.num_classes, type(scheduler).__name__
    kind = "dit" if part == "transformer" else "classes" if rows else "plain"
    guidance = (
        "that is right" if backbone.null_class == 1000 else "take guidance_scale=1, or guide in a loop of your own"
    )
    labels = "it has none." if not rows else f"{table_row(backbone, 0)} to {table_row(backbone, rows - 1)}"
    if rows:
        labels += "." if backbone.null_class is None else f", and {backbone.null_class} for no class."
    return ABOUT.format(
        name=loaded.config.get("name") or "model",
        part=part,
        network=backbone.name,
        scheduler=name,
        steps="" if "shift" in scheduler.config else STEPS.format(steps=scheduler.config.num_train_timesteps),
        labels=labels,
        clips=CLIPS[kind],
        use=USES[kind].format(
            rows=rows, guidance=guidance, scheduler=name, shape=", ".join(map(str, loaded.facts["shape"]))
        ),
    )
