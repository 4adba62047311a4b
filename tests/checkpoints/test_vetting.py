"""Which nodes of a saved configuration may be built, role by role: for resuming, which takes whole parts of it."""

from pathlib import Path

import pytest
from composing import composed
from omegaconf import OmegaConf
from small_checkpoint import CONFIG

from diffguide.checkpoints.allowlist import ROLES, construct, validate_config
from diffguide.checkpoints.assembly import assemble
from diffguide.checkpoints.validation import check_model
from diffguide.config.build import config_dir
from diffguide.files.safetensors import CheckpointError
from diffguide.sampling.sources import training_data

FOLDER = Path(config_dir())
OTHER_ROLES = {"grid", "oracle", "metric", "architecture", "to"}  # of a part, or of other commands
GRID = {"_target_": "diffguide.samplers.grids.UniformT"}


@pytest.fixture(scope="module")
def saved():
    """The default configuration as a run saves it."""
    return OmegaConf.to_container(composed("name=digits"), resolve=True)


def test_every_saved_configuration_may_be_built(saved):
    """Of every role of a training run; only the optimiser is never read from a file."""
    assert set(ROLES) - OTHER_ROLES == {role for role, node in saved.items() if isinstance(node, dict)}
    training = {key: value for key, value in saved["training"].items() if key != "optimizer"}
    for role in ROLES.keys() - OTHER_ROLES - {"training"}:
        assert validate_config(saved[role], role).__name__ == saved[role]["_target_"].rpartition(".")[2]
    assert validate_config(training, "training").__name__ == "Training"
    assert validate_config(saved["sampler"]["grid"], "grid").__name__ == "Karras"
    with pytest.raises(CheckpointError, match="training.optimizer is a node"):
        validate_config(saved["training"], "training")


OPTIONS = sorted(path for path in FOLDER.rglob("*/*.yaml") if path.parent.name in ROLES)


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_option_may_be_built(path):
    """Without the values that are given later."""

    def own(value):
        """Without what others fill in: placeholders, facts of the data, parts that have no target here."""
        if not isinstance(value, dict):
            return value
        entries = [entry for entry in value.get("defaults", []) if isinstance(entry, dict)]
        elsewhere = {"defaults", *(name.partition("@")[2] or name for entry in entries for name in entry)}
        parts = {key: own(part) for key, part in value.items() if key not in elsewhere and part != {"_partial_": True}}
        return {key: part for key, part in parts.items() if part != "???" and "${" not in str(part)}

    plain = own(OmegaConf.to_container(OmegaConf.load(path)))
    validate_config(plain, path.parent.name)


@pytest.mark.parametrize("inside", [{"_target_": "os.system", "command": "touch canary"}, {"a": 1}, "text", None])
def test_nested_lists_hold_only_numbers(inside):
    """An argument that may be a number, a list of them or a list of lists: none of these has a node in it."""
    node = OmegaConf.to_container(OmegaConf.load(FOLDER / "oracle/anisotropic.yaml"))
    node["covariances"][2] = [[0.2, inside], [0.0, 0.2]]
    with pytest.raises(CheckpointError, match="oracle.covariances"):
        validate_config(node, "oracle")


OBJECTIVES = {  # of the networks that do not regress noise
    "unet_encoder": ["objective=classifier"],
    "mlp_classifier": ["objective=classifier"],
    "unet_levels": ["objective=cdm"],
    "mlp_levels": ["objective=cdm"],
    "unet_joint": ["objective=energy"],
    "unet_energy": ["objective=dual_score"],
    "unet_equilibrium": ["objective=eqm"],
    "convnet": ["objective=jem", "schedule=none"],
    "small_kl": ["objective=autoencoder"],
}
NETWORKS = sorted(path.stem for path in (FOLDER / "backbone").iterdir())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_builds_without_memory(name):
    """Built and called on `meta`, as in the validation of a checkpoint."""
    side, vectors = int(name.rpartition("_")[2]) if name[-1].isdigit() else 32, name.startswith("mlp")
    shape = [2] if vectors else [3, side, side]
    facts = [f"dataset.channels={shape[0]}", f"dataset.size={'null' if vectors else side}"]
    facts += OBJECTIVES.get(name.removesuffix("_28").removesuffix("_32"), [])
    facts += (
        ["backbone.attention=[]"]
        if name
        in (
            "unet",
            "edm_unet",
            "edm2_unet",
            "unet_encoder",
            "unet_levels",
            "unet_joint",
            "unet_twice_differentiable",
            "unet_energy",
            "unet_equilibrium",
        )  # fmt: skip
        else []
    )
    cfg = composed("name=x", f"backbone={name}", *facts)
    objective = assemble(OmegaConf.to_container(cfg, resolve=True), (), "meta")
    assert all(value.is_meta for value in objective.state_dict().values())
    names = [""] * (0 if name in ("small_kl", "unet_energy") else 10)
    check_model(objective.model, {"class_names": names, "shape": shape})
    with pytest.raises(CheckpointError, match="does not accept examples of its shape"):
        check_model(objective.model, {"class_names": names, "shape": [4, 64, 64] if vectors else [1, side, side]})


REFUSED = {
    "engine: another function": (
        "engine",
        {"_target_": "diffguide.files.run_folders.create_version_dir", "parent": "x"},
    ),
    "engine: a class": ("engine", {"_target_": "lightning_fabric.Fabric"}),
    "sampler: a grid": ("sampler", GRID),
    "grid: a sampler": ("grid", {"_target_": "diffguide.samplers.heun.Heun", "steps": 2, "grid": GRID}),
    "grid: a node in a number": ("grid", {"_target_": "diffguide.samplers.grids.Karras", "rho": GRID}),
    "sampler: nested": (
        "sampler",
        {"_target_": "diffguide.samplers.heun.Heun", "steps": 2, "grid": {"_target_": "os.system"}},
    ),
    "guidance: what it wraps": ("guidance", {"_target_": "diffguide.guidance.contrast.Unguided", "denoiser": GRID}),
    "training: partial": ("training", {"_target_": "diffguide.training.loop.Training", "_partial_": True}),
    "dataset: numbers beyond 2^62": ("dataset", {"_target_": "diffguide.datasets.gmm2d.GMM2D", "seed": 2**63}),
    "dataset: an interpolation": ("dataset", {"_target_": "diffguide.datasets.gmm2d.GMM2D", "seed": "${oc.env:HOME}"}),
    "a deep node": (
        "sampler",
        {"_target_": "diffguide.samplers.heun.Heun", "grid": [[[[[[[[[[[[[[[[[[GRID]]]]]]]]]]]]]]]]]]},
    ),
    "a key that is no text": ("sampler", {"_target_": "diffguide.samplers.heun.Heun", 3: 4}),
    "nothing": ("sampler", None),
}


@pytest.mark.parametrize("role, node", REFUSED.values(), ids=REFUSED)
def test_every_other_target_is_an_error(role, node):
    with pytest.raises(CheckpointError, match=role):
        validate_config(node, role)


def test_nodes_in_lists_are_built_where_the_constructor_asks_for_objects(tmp_path, monkeypatch):
    (tmp_path / "my_samplers.py").write_text(
        "from collections.abc import Sequence\n"
        "from diffguide.samplers.grids import Grid\n"
        "class Several(Grid):\n"
        "    def __init__(self, grids: Sequence[Grid]):\n"
        "        self.grids = grids\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    several, trust = {"_target_": "my_samplers.Several", "grids": [GRID, GRID]}, ["my_samplers.Several"]
    assert [type(grid).__name__ for grid in construct(several, "grid", trust).grids] == ["UniformT"] * 2
    for stranger in ({"_target_": "os.getcwd"}, {"_target_": "diffguide.models.parameterizations.V"}, "text"):
        with pytest.raises(CheckpointError, match=r"grid\.grids"):
            validate_config(several | {"grids": [GRID, stranger]}, "grid", trust)


def test_a_data_set_that_reads_files_is_not_built_for_a_plot():
    """The background of a scatter plot is drawn from a seed, or skipped."""
    assert training_data(CONFIG).shape == (50, 2)
    digits = {"_target_": "diffguide.datasets.digits.Digits", "channels": 1, "size": 8, "num_classes": 10}
    for node in (
        digits,
        {"_target_": "os.getcwd"},
        CONFIG["dataset"] | {"train": 10**12},
        CONFIG["dataset"] | {"seed": "x"},
        None,
    ):
        assert training_data({"dataset": node}) is None
