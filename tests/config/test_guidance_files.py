"""What the guidance files build, files of the user that compose several, and messages for mistakes in them."""

import math
from pathlib import Path

import pytest
from closed_forms import ExactMixture, two_classes
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_checkpoint import save

from diffguide.checkpoints.allowlist import validate_config
from diffguide.config.build import ConfigError, build, config_dir, fill_label_dropout
from diffguide.guidance.projections import APG
from diffguide.guidance.rules import CFGPlusPlus
from diffguide.sample import main
from diffguide.schedules import Cosine


def exact() -> ExactMixture:
    return ExactMixture(two_classes(), Cosine(12.0, -10.0))


def composed(*overrides: str):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("sample", ["oracle=gmm2d", *overrides])


FILES = {  # guidance: (rule, what must be said beside)
    "cfg": ("Linear", []), "cfg_rescale": ("Rescale", []), "apg": ("APG", []), "cfg_zero": ("CFGZero", []),
    "cfgpp": ("CFGPlusPlus", []), "tcfg": ("TCFG", []), "mambo_g": ("Mambo", []), "threshold": ("Threshold", []),
    "fdg": ("FDG", []), "smc_cfg": ("SMC", []), "adamag": ("AdaMaG", []), "vags": ("VAGS", []),
    "pmc_cfg": ("PosteriorMeanCap", []), "norm_limit": ("NormLimit", []), "recfg": ("RectifiedRatio", []),
    "fbg": ("Feedback", []), "rectified_cfgpp": ("Linear", []), "negative": ("Linear", ["guidance.condition=1"]),
    "compose": ("Linear", ["guidance.conditions=[0,1]", "guidance.weights=[1,-0.5]"]),
}  # fmt: skip


@pytest.mark.parametrize("name, rule, said", [(name, *row) for name, row in FILES.items()], ids=FILES)
def test_every_file_builds_its_rule(name, rule, said):
    guided = build(composed(f"guidance={name}", *said).guidance, "guidance", exact())
    assert type(guided.rule).__name__ == rule and isinstance(guided.scale, float) and len(guided.interval) == 2


@pytest.mark.parametrize("name, said", [(name, said) for name, (_, said) in FILES.items()], ids=FILES)
@pytest.mark.parametrize("missing", ["num_classes", "has_null"])
def test_a_model_that_does_not_fit_is_told_the_guidance_that_was_asked_for(name, said, missing):
    denoiser = exact()
    setattr(denoiser, missing, False)
    if (name, missing) == ("negative", "has_null"):  # the other class takes the place of the null condition
        build(composed(f"guidance={name}", *said).guidance, "guidance", denoiser)
        return
    with pytest.raises(ConfigError, match=f"^guidance: guidance={name} needs a model "):
        build(composed(f"guidance={name}", *said).guidance, "guidance", denoiser)


DROPPING = {
    "cfg", "cfg_rescale", "apg", "cfg_zero", "cfgpp", "tcfg", "mambo_g", "threshold", "fdg", "compose", "cads",
    "classifier_cfg", "cfg_parts", "smc_cfg", "adamag", "vags", "pmc_cfg", "norm_limit", "recfg", "fbg", "rectified_cfgpp",
    "recfg_table", "ltx2", "distilled",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(config_dir(), "guidance").glob("*.yaml")))
def test_training_drops_labels_for_what_needs_it(name):
    """p_uncond follows from the class, inner ones too, so that diffguide-train guidance=<name> trains what it can guide."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", [f"guidance={name}"])
    fill_label_dropout(cfg)
    assert cfg.p_uncond == (0.1 if name in DROPPING else 0.0)


def test_rule_and_ramp_are_chosen_on_the_command_line():
    cfg = composed("guidance=negative", "guidance.condition=0", "guidance/rule=apg", "guidance/ramp=cosine",
                   "guidance.rule.momentum=0.2", "guidance.ramp.full=0.3")  # fmt: skip
    guided = build(cfg.guidance, "guidance", exact())
    assert type(guided.rule) is APG and guided.rule.momentum == 0.2 and guided.ramp.full == math.log(0.3)


def part(file: str, **changed) -> dict:
    """A node of a composed file: the content of one file, with _partial_."""
    node = OmegaConf.to_container(composed(f"guidance={file}").guidance)
    return {**node, "_partial_": True, **changed}


def test_a_composed_file_is_nodes_by_name():
    nested = {
        "_target_": "diffguide.guidance.nested.Nested",
        "parts": {"cfg": part("apg", scale=3.0), "outer": part("cfgpp", scale=0.5)},
    }
    validate_config(nested, "guidance")  # as when a run is resumed
    guided = build(nested, "guidance", exact())
    inner = guided.denoiser.denoiser
    assert type(guided.denoiser.rule) is CFGPlusPlus and type(inner.rule) is APG and inner.scale == 3.0
    assert isinstance(inner.denoiser, ExactMixture)


@pytest.mark.parametrize("wrong, sentence", [
    (part("cfg", scale="much"), "guidance.parts.cfg.scale must be a number"),
    (part("cfg", strength=2.0), "there is no key guidance.parts.cfg.strength"),
    (part("cfg", _partial_=False), "guidance.parts.cfg needs _partial_: true"),
    (part("cfg", scale=math.inf), "scale must be a finite number, got inf"),
])  # fmt: skip
def test_a_mistake_in_a_composed_file_names_its_key(wrong, sentence):
    nested = {"_target_": "diffguide.guidance.nested.Nested", "parts": {"cfg": wrong}}
    with pytest.raises(ConfigError, match=sentence):
        build(nested, "guidance", exact())


@pytest.mark.parametrize("wrong, sentence", [
    ({"_target_": "os.system", "_partial_": True}, "os.system, which is not diffguide's"),
    ({"_target_": "diffguide.schedules.curves.Cosine", "_partial_": True}, "no DenoiserWrapper of diffguide"),
    (part("cfg", _args_=[1]), "_args_ is not an argument"), (part("cfg", _partial_=1), "_partial_ is not an argument"),
    (part("cfg", denoiser=None), "denoiser is not an argument"), ([part("cfg")], "parts.cfg must be a node"),
    (2.0, "parts.cfg must be a node"),
    ({"_convert_": part("cfg")}, "parts.cfg has no _target_"),
])  # fmt: skip
def test_a_saved_composition_builds_only_its_own_guidance(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate_config({"_target_": "diffguide.guidance.nested.Nested", "parts": {"cfg": wrong}}, "guidance")


def test_a_guidance_at_the_top_is_not_partial():
    with pytest.raises(ValueError, match="_partial_ is not an argument"):
        validate_config(part("cfg"), "guidance")


OWN = """
defaults:
  - /guidance@parts.inner: apg
  - /guidance@parts.outer: cfgpp
  - _self_
_target_: diffguide.guidance.nested.Nested
parts:
  inner: {_partial_: true, scale: 3.0, interval: [0.3, 5.0]}
  outer: {_partial_: true}
"""


def test_a_file_of_the_user_composes_guidance(tmp_path, command):
    """Keys of its parts are overridden by their place; an unsupported sampler is an error before the run starts."""
    (tmp_path / "mine/guidance").mkdir(parents=True)
    (tmp_path / "mine/guidance/both.yaml").write_text(OWN)
    said = ["--config-dir", "mine", "oracle=gmm2d", "guidance=both", "n=8", "sampler.steps=3"]
    done = command(main, *said, "guidance.parts.outer.scale=0.4", at=tmp_path)
    assert done.code == 0, done.err
    written = OmegaConf.load(tmp_path / done.folder / "config.yaml")
    assert [node.scale for node in written.guidance.parts.values()] == [3.0, 0.4]
    done = command(main, *said, "sampler=dopri5", at=tmp_path)
    assert (
        done.code == 1 and "Dopri5 evaluates every sample at its own time" in done.err and "Traceback" not in done.err
    )


def test_several_options_are_an_error_that_names_config_dir(tmp_path, command):
    done = command(main, "oracle=gmm2d", "guidance=[cfg,apg]", at=tmp_path)
    assert done.code == 1 and "in your own file (--config-dir)" in done.err


def test_classes_of_a_checkpoint_are_chosen_by_name(tmp_path, command):
    """The class names are those of the trained model."""
    save(tmp_path, class_names=["north", "east", "south", "west"])
    said = ["checkpoint=" + str(tmp_path), "weights=objective", "guidance=negative", "n=4", "sampler.steps=2"]
    done = command(main, *said, "guidance.condition=east", at=tmp_path)
    assert done.code == 0, done.err
    done = command(main, *said, "guidance.condition=up", at=tmp_path)
    assert done.code == 1 and "there is no class 'up'; indices 0 to 3" in done.err


OTHERS = {  # guidance that is no rule: what must be said beside
    "HiGS": ("higs", []), "MomentumGuidance": ("momentum", []), "TemporalScoreRescaling": ("tsr", []),
    "RectifiedCFGPlusPlus": ("rectified_cfgpp", []),
    "ReferenceGuidance": ("reference", ["dataset@guidance.references.dataset=gmm2d", "guidance.references.label=1"]),
}  # fmt: skip


@pytest.mark.parametrize("kind, name, said", [(kind, *row) for kind, row in OTHERS.items()], ids=OTHERS)
def test_every_other_file_builds_its_class(kind, name, said):
    node = composed(f"guidance={name}", *said).guidance
    validate_config(OmegaConf.to_container(node, resolve=True), "guidance")
    assert type(build(node, "guidance", exact())).__name__ == kind


def test_contrasts_that_are_added_are_named_parts():
    node = composed(
        "guidance=ltx2", "guidance.parts.slg.layers=[0]", "guidance.parts.cfg.scale=4", "guidance.rescale=0.7"
    )
    validate_config(OmegaConf.to_container(node.guidance), "guidance")
    with pytest.raises(ConfigError, match="guidance=slg perturbs residual blocks"):  # a mixture has none
        build(node.guidance, "guidance", exact())
