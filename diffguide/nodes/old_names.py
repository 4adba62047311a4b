"""Configurations of earlier versions, read as this version writes them: moved and renamed classes, renamed and new keys.

OPTIONS and RENAMED also hold for what is typed: an old name works for one version after it was renamed.

A run keeps what it was: where a saved node lacks a key that its class has gained since, the key gets the value that says
what the class did then. New runs state every such key.
"""

from typing import Any

__all__ = ["current_name", "renamed_key", "stated", "updated"]

OPTIONS = {  # group: old option: new option
    "guidance": {
        "auto": "autoguidance",
        "ordinary": "clean_classifier",
        "potential_of_x_t": "noisy_potential",
    },
}
MODULES = {  # old module: new module
    "diffguide.parameterizations": "diffguide.models.parameterizations",
    "diffguide.decoders": "diffguide.models.decoders",
    "diffguide.training": "diffguide.training.loop",
    "diffguide.engine": "diffguide.runtime.engine",
    "diffguide.evaluation.likelihoods": "diffguide.evaluation.likelihood.metrics",
    "diffguide.evaluation.likelihood": "diffguide.evaluation.likelihood.dequantization",
    "diffguide.evaluation.density": "diffguide.evaluation.likelihood.base",
    "diffguide.evaluation.flow_ode": "diffguide.evaluation.likelihood.flow_ode",
    "diffguide.evaluation.level_steps": "diffguide.evaluation.likelihood.discrete_ode",
    "diffguide.evaluation.density_error": "diffguide.evaluation.likelihood.density_error",
    "diffguide.evaluation.samples": "diffguide.evaluation.quality.metric",
    "diffguide.evaluation.features": "diffguide.evaluation.quality.features",
    "diffguide.evaluation.local": "diffguide.evaluation.quality.local",
    "diffguide.evaluation.pretrained": "diffguide.evaluation.quality.pretrained",
    "diffguide.evaluation.classification": "diffguide.evaluation.classification.metric",
    "diffguide.evaluation.zero_shot": "diffguide.evaluation.classification.zero_shot",
    "diffguide.evaluation.zero_shot_metric": "diffguide.evaluation.classification.zero_shot_metric",
    "diffguide.evaluation.weighting": "diffguide.evaluation.classification.weighting",
    "diffguide.evaluation.ood": "diffguide.evaluation.classification.ood",
    "diffguide.evaluation.level_metric": "diffguide.evaluation.classification.level_metric",
}
CLASSES = {  # old dotted name of a class or function: new one; read before MODULES
    "diffguide.evaluation.likelihood.Uniform": "diffguide.evaluation.likelihood.dequantization.UniformDequantization",
    "diffguide.evaluation.likelihood.Decoded": "diffguide.evaluation.likelihood.dequantization.DecoderDequantization",
    "diffguide.evaluation.likelihoods.Likelihoods": "diffguide.evaluation.likelihood.comparison.Likelihoods",
    "diffguide.evaluation.weighting.UniformTime": "diffguide.evaluation.classification.weighting.UniformTimeWeighting",
    "diffguide.guidance.ordinary.ExportedProgram": "diffguide.guidance.clean_classifier.ExportedProgram",
    "diffguide.guidance.ordinary.OrdinaryGuidance": "diffguide.guidance.clean_classifier.CleanClassifierGuidance",
    "diffguide.guidance.ordinary.TorchScript": "diffguide.guidance.clean_classifier.TorchScript",
    "diffguide.guidance.ordinary.Torchvision": "diffguide.guidance.clean_classifier.Torchvision",
    "diffguide.guidance.potentials.base.NoisedPotentialGuidance": (
        "diffguide.guidance.potentials.base.NoisyPotentialGuidance"
    ),
    "diffguide.guidance.ramps.Table": "diffguide.guidance.ramps.TableRamp",
    "diffguide.guidance.weak.Auto": "diffguide.guidance.autoguidance.Autoguidance",
    "diffguide.guidance.weak.Compose": "diffguide.guidance.composition.ClassComposition",
    "diffguide.guidance.weak.Negative": "diffguide.guidance.composition.NegativeCondition",
    "diffguide.objectives.classifier.Classifying": "diffguide.objectives.classifier.ClassifierObjective",
    "diffguide.objectives.energy.EnergyDenoising": "diffguide.objectives.energy.EnergyObjective",
    "diffguide.samplers.grids.Levels": "diffguide.samplers.grids.ModelLevels",
    "diffguide.samplers.grids.Listed": "diffguide.samplers.grids.CustomGrid",
    "diffguide.engine.fabric": "diffguide.runtime.engine.build_fabric",
}
FOLDER = "diffguide.datasets.image_folder.ImageFolder"
DOWNLOADS = [f"diffguide.datasets.downloads.{name}" for name in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100")]
ADDED: dict[str, dict[str, tuple[Any, Any]]] = {  # class: key: what it did before, and what a new run does
    FOLDER: {
        "suffixes": ([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"], None),
        "class_order": ("names", "numbers"),
        "split_by": ("path", "contents"),
    },
}
QUANTIZED = [
    FOLDER,
    *DOWNLOADS,
    "diffguide.datasets.digits.Digits",
    "diffguide.datasets.gmm2d.GMM2D",
    "diffguide.datasets.photo_patches.PhotoPatches",
    "diffguide.objectives.cdm.CDM",
    "diffguide.objectives.density_ratio.DensityRatio",
    "diffguide.models.decoders.Discretized",
    "diffguide.evaluation.likelihood.metrics.ELBO",
    "diffguide.evaluation.likelihood.metrics.ExactDensity",
    "diffguide.evaluation.likelihood.metrics.FlowODE",
]
RENAMED: dict[str, dict[str, str]] = {
    target: {"values": "quantization_levels"} for target in QUANTIZED
}  # class: before: now
for target in DOWNLOADS:
    RENAMED[target]["root"] = "path"
RENAMED["diffguide.training.loop.Training"] = {"keep": "keep_checkpoints"}
RENAMED_KEYS = {  # node: key as it was typed before: now
    "dataset": {"root": "path", "values": "quantization_levels"},
    "objective": {"values": "quantization_levels"},
    "decoder": {"values": "quantization_levels"},
    "training": {"keep": "keep_checkpoints"},
} | {name: {"values": "quantization_levels"} for name in ("metric", "elbo", "ode", "exact", "density")}


def renamed_key(key: str) -> str:
    """A dotted key as it was typed, by its name of today."""
    parent, _, name = key.rpartition(".")
    now = RENAMED_KEYS.get(parent.rpartition(".")[2], {}).get(name)
    return f"{parent}.{now}" if now else key


def current_name(target: str) -> str:
    """The dotted name of a class or function as this version has it."""
    module, _, name = target.rpartition(".")
    return CLASSES.get(target) or (f"{MODULES[module]}.{name}" if module in MODULES else target)


def fill_keys(value: Any, column: int) -> Any:
    """A configuration with today's keys in all its nodes, and those that they lack from a column of ADDED."""
    if isinstance(value, list):
        return [fill_keys(part, column) for part in value]
    if not isinstance(value, dict):
        return value
    target = value.get("_target_")
    if isinstance(target, str):
        target = current_name(target)
        value = value | {"_target_": target}
    names, added = RENAMED.get(str(target), {}), ADDED.get(str(target), {})
    node = {names.get(key, key): fill_keys(part, column) for key, part in value.items()}
    return node | {key: pair[column] for key, pair in added.items() if key not in node}


def updated(config: Any) -> Any:
    """A saved configuration, or one node of it, as this version would have written it."""
    return fill_keys(config, 0)


def stated(config: Any) -> Any:
    """A configuration of a new run, in which a file of the user's may leave out what a class has a default for."""
    return fill_keys(config, 1)
