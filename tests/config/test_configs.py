"""Every YAML file is one constructor call with every argument written out."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from composing import composed, composed_once
from omegaconf import DictConfig, OmegaConf

from diffguide.config.build import build, config_dir

FOLDER = Path(config_dir())
INJECTED = {  # handed over by the caller, for a role or for one of its members
    "objective": ["backbone", "schedule"], "guidance": ["denoiser"], "oracle": ["schedule"],
    "diffguide.oracles.empirical.Empirical": ["data", "labels"], "diffguide.backbones.lora.LoRA": ["network"],
}  # fmt: skip
NO_COMPONENTS = {"experiment"}
COMPONENTS = sorted(path for path in FOLDER.rglob("*/*.yaml") if path.relative_to(FOLDER).parts[0] not in NO_COMPONENTS)


def nodes(node, role: str):
    """(role, node) for a mapping with a _target_ and for those below it."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield role, node
        for key, value in node.items():
            yield from nodes(value, key)


def target(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def check(role: str, node: dict, nested: set[str] = frozenset()) -> None:
    constructor = target(node["_target_"])
    given = INJECTED.get(role, []) + INJECTED.get(node["_target_"], [])
    parameters = [name for name in inspect.signature(constructor).parameters if name not in given]
    written = {key for key in node if not key.startswith("_")}
    if not node.get("_partial_"):
        assert written | nested == set(parameters), node["_target_"]
    assert f"{constructor.__module__}.{constructor.__qualname__}" == node["_target_"] or node.get("_partial_")


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_file_is_a_constructor_call(path):
    config = OmegaConf.to_container(OmegaConf.load(path))
    groups = [group for entry in config.pop("defaults", []) if isinstance(entry, dict) for group in entry]
    nested = {group.rpartition("@")[2] for group in groups if not group.startswith("override")}  # from their own files
    nested.discard("_global_")  # a key of the root, that an option brings along
    nested = {key for key in nested if "." not in key}  # the others complete a part
    for name, node in nodes(config, path.parent.name):
        check(name, node, nested if node is config else set())


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_key_has_a_comment(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    bare = [line for line in lines if ":" in line and not line.rstrip().endswith(":")]
    assert [line for line in bare if "#" not in line and "_target_" not in line and "  - " not in line] == []


def test_the_training_node_is_a_constructor_call():
    config = OmegaConf.to_container(OmegaConf.load(FOLDER / "train.yaml"))
    for role, node in nodes(config["training"], "training"):
        check(role, node)


def test_every_group_is_tested():
    groups = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert groups - NO_COMPONENTS == {path.relative_to(FOLDER).parts[0] for path in COMPONENTS}


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "schedule").iterdir() if path.stem != "none"))
def test_every_schedule_comes_from_its_file(name):
    """Wrappers have an inner schedule; resolution_shift reads the size of the data."""
    schedule = build(composed(f"schedule={name}", "dataset=cifar10").schedule, "schedule")
    assert float(schedule.log_snr(0.0).detach()) == schedule.log_snr_max > 5
    assert schedule.zero_terminal_snr == (name == "zero_terminal_snr")


@pytest.mark.parametrize("name, inner", [("zero_terminal_snr", "scaled_linear"), ("resolution_shift", "flow")])
def test_the_schedule_inside_another_is_chosen(name, inner):
    cfg = composed(f"schedule={name}", f"schedule@schedule.schedule={inner}", "schedule.schedule.log_snr_max=9.5")
    schedule = build(cfg.schedule, "schedule")
    assert type(schedule.schedule).__name__.lower() == inner.replace("_", "") and schedule.schedule.log_snr_max == 9.5


def built(cfg: DictConfig) -> torch.nn.Module:
    """The backbone, on the device that holds no numbers."""
    with torch.device("meta"):
        return build(cfg.backbone, "backbone")


def shape_of(cfg: DictConfig, network: torch.nn.Module) -> tuple[int, ...]:
    """Of the output for two examples of the data's shape, computed without numbers."""
    facts = cfg.dataset
    shape = (facts.channels, facts.size, facts.size) if facts.size else (facts.channels,)
    x = torch.zeros(2, *shape, device="meta")
    log_snr = torch.zeros(2, device="meta") if network.noise_conditioned else None
    y = torch.zeros(2, dtype=torch.long, device="meta") if network.conditioning is None else None
    return tuple(network(x, log_snr, y).shape)


SIDES = {  # of the images that each backbone file is for
    "unet": [8], "unet_28": [28], "unet_32": [32], "unet_64": [64], "unet_128": [128], "unet_lean_32": [32], "dit": [8, 28, 32],
    "dit_s": [32], "dit_b": [32], "dit_l": [32], "dit_xl": [32], "mlp": [None], "mlp_classifier": [None],
    "unet_encoder": [8], "unet_encoder_28": [28], "unet_encoder_32": [32], "mlp_levels": [None], "unet_levels": [8],
    "unet_joint": [8], "convnet": [8], "edm_unet": [8], "edm2_unet": [8], "unet_twice_differentiable": [8],
    "unet_equilibrium": [8], "unet_energy": [8], "mlp_energy": [None],
    "diffusers_unet": [8, 32], "diffusers_dit": [8], "small_kl": [8, 32],
}  # fmt: skip
# one number per class
CLASSIFIERS = {
    "convnet",
    "mlp_classifier",
    "unet_encoder",
    "unet_encoder_28",
    "unet_encoder_32",
    "unet_joint",
}
ENERGIES = {"mlp_energy", "unet_energy"}  # one number
LEVELS = {"mlp_levels", "unet_levels"}  # one number per noise level of objective=cdm


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "backbone").iterdir()))
def test_backbones_fit_the_images_they_are_for(name):
    """And the parameters, in millions, are those that the file's first line states."""
    stated = re.search(r"([\d.]+) M parameters", (FOLDER / f"backbone/{name}.yaml").read_text().split("\n")[0])
    objective = ["objective=cdm"] if name in LEVELS else []
    for side in SIDES[name]:
        dataset = f"dataset={'digits' if side else 'gmm2d'}"
        cfg = composed(f"backbone={name}", dataset, f"dataset.size={side or 'null'}", *objective)
        network = built(cfg)
        shape = (2, cfg.dataset.channels, side, side) if side else (2, cfg.dataset.channels)
        outputs = cfg.objective.levels if name in LEVELS else 1 if name in ENERGIES else cfg.dataset.num_classes
        assert shape_of(cfg, network) == ((2, outputs) if name in CLASSIFIERS | LEVELS | ENERGIES else shape)
        if not name.startswith("mlp"):
            assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(float(stated[1]), rel=0.02)


def chosen(experiment: Path, group: str) -> str | None:
    """The option that an experiment picks of a group, if any."""
    picked = [node for node in OmegaConf.load(experiment).get("defaults", []) if f"override /{group}" in node]
    return picked[0][f"override /{group}"] if picked else None


BRINGS = {  # what an objective alone must have beside it: network, schedule, guidance, sampler; None = the default's
    "cdm": ("unet_levels", None, None, "ddim"), "cdm_ce": ("unet_levels", None, None, "ddim"),
    "cdm_mse": ("unet_levels", None, None, "ddim"), "classifier": ("unet_encoder", None, "none", None),
    "energy": ("unet_joint", None, None, None), "jem": ("convnet", "none", "none", "sgld"),
    "nce": ("unet_levels", None, None, None), "tre": ("unet_levels", None, None, "ddim_10"),
    "sliced": ("unet_twice_differentiable", None, None, None), "autoencoder": ("small_kl", "none", "none", None),
    "dual_score": ("unet_energy", None, "none", None), "ctsm": ("unet_energy", None, "none", None),
    "diffclf": ("unet_energy", None, "none", None), "eqm": ("unet_equilibrium", "none", "none", "descent"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BRINGS, "eps", "vdm"])
def test_an_objective_brings_what_it_needs(name):
    """Typed values win, and so does what an experiment chooses; label dropout follows the guidance."""
    groups, default = ("backbone", "schedule", "guidance", "sampler"), composed_once("objective=v")
    cfg, brings = composed(f"objective={name}"), BRINGS.get(name, (None,) * 4)
    for group, option in zip(groups, brings):
        wanted = default[group] if option is None else composed(f"objective={name}", f"{group}={option}")[group]
        assert cfg[group] == wanted
        assert option is None or cfg[group] != default[group]
    assert (cfg.p_uncond > 0) == (brings[2] is None)
    objective = build(cfg.objective, "objective", built(cfg), build(cfg.schedule, "schedule"))
    if name not in ("classifier", "nce", "autoencoder"):  # which make no samples
        build(cfg.sampler, "sampler").times(build(cfg.guidance, "guidance", objective.model))
    typed = composed(f"objective={name}", "backbone=mlp", "schedule=ve", "guidance=apg", "sampler=euler")
    plain = composed_once("objective=v", "backbone=mlp", "schedule=ve", "guidance=apg", "sampler=euler")
    assert all(typed[group] == plain[group] for group in (*groups, "p_uncond"))


def test_an_experiment_outweighs_what_an_objective_brings():
    jem = composed("experiment=ncsn_digits", "objective=jem")  # it chooses its network, schedule, guidance and sampler
    assert all(jem[group] == composed("experiment=ncsn_digits")[group] for group in ("backbone", "schedule", "sampler"))


@pytest.mark.parametrize("path", sorted((FOLDER / "experiment").iterdir()), ids=lambda path: path.stem)
def test_experiments_compose_and_their_parts_fit(path):
    """Every part except the data builds, and the network fits the data."""
    dataset = chosen(path, "dataset")
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_" and lines[1].startswith("# ")
    cfg = composed(f"experiment={path.stem}", *(["dataset=digits"] if dataset is None else []))
    if OmegaConf.is_missing(cfg.dataset, "num_classes"):
        cfg.dataset.num_classes = 3
    if not cfg.first_stage._target_.endswith("NoFirstStage"):  # the network is that of latents, which the data state
        cfg.dataset.channels, cfg.dataset.size = 4, cfg.dataset.size // 4
    if cfg.condition._target_ != "diffguide.conditions.classes.Classes":
        cfg.backbone.conditioning, cfg.backbone.num_classes = cfg.condition, 0
    backbone, training = built(cfg), build(cfg.training, "training")
    objective = build(cfg.objective, "objective", backbone, build(cfg.schedule, "schedule"))
    if backbone.out_features and chosen(path, "backbone") not in LEVELS:
        assert shape_of(cfg, backbone) == (2, cfg.dataset.num_classes)
    elif chosen(path, "objective") == "autoencoder":
        assert shape_of(cfg, backbone) == (2, cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size)
    else:
        build(cfg.sampler, "sampler").times(build(cfg.guidance, "guidance", objective.model))
        assert shape_of(cfg, backbone)[1] == (backbone.out_features or cfg.dataset.channels)
    assert training.batch_size % training.accumulate == 0
    assert (cfg.p_uncond > 0) == (cfg.guidance._target_.endswith("ClassifierFree"))
    assert training.plan().rate_at(training.images // 2) < training.learning_rate
