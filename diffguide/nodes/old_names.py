"""Updates of configurations of earlier versions: moved and renamed classes, renamed and new keys.

OPTIONS and RENAMED_KEYS also hold on the command line, where an old name works for one version with a notice.

A saved node may lack a key that its class has gained since. It then gets the value that reproduces the former behaviour.
"""

from typing import Any

__all__ = ["complete_new_config", "current_key", "current_name", "update_saved_config"]

OPTIONS = {  # group: old option: new option
    "guidance": {"auto": "autoguidance", "ordinary": "clean_classifier", "potential_of_x_t": "noisy_potential"}
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
ADDED: dict[str, dict[str, tuple[Any, Any]]] = {  # class: key: (value in saved runs without it, value in new runs)
    FOLDER: {
        "suffixes": ([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"], None),
        "class_order": ("names", "numbers"),
        "split_by": ("path", "contents"),
    }
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
# class: old key: new key
RENAMED: dict[str, dict[str, str]] = {target: {"values": "quantization_levels"} for target in QUANTIZED}
for target in DOWNLOADS:
    RENAMED[target]["root"] = "path"
RENAMED["diffguide.training.loop.Training"] = {"keep": "keep_checkpoints"}
RENAMED_KEYS = {  # node: old key: new key
    "dataset": {"root": "path", "values": "quantization_levels"},
    "objective": {"values": "quantization_levels"},
    "decoder": {"values": "quantization_levels"},
    "training": {"keep": "keep_checkpoints"},
} | {name: {"values": "quantization_levels"} for name in ("metric", "elbo", "ode", "exact", "density")}


def current_key(key: str) -> str:
    """The present name of a dotted key."""
    parent, _, name = key.rpartition(".")
    current = RENAMED_KEYS.get(parent.rpartition(".")[2], {}).get(name)
    return f"{parent}.{current}" if current else key


def current_name(target: str) -> str:
    """The present dotted name of a class or function."""
    module, _, name = target.rpartition(".")
    if target in CLASSES:
        return CLASSES[target]
    return f"{MODULES[module]}.{name}" if module in MODULES else target


def fill_keys(value: Any, column: int) -> Any:
    """A configuration with present names in all its nodes, and missing keys from a column of ADDED."""
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


def update_saved_config(config: Any) -> Any:
    """A saved configuration, or a node of it, in the names of this version."""
    return fill_keys(config, 0)


def complete_new_config(config: Any) -> Any:
    """A configuration of a new run, with the keys of ADDED that a configuration file of the user lacks."""
    return fill_keys(config, 1)
