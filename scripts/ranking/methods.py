"""Every guidance method: its scales, its main knob with three values, and what it needs of a law."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffguide.config.build import build, config_dir
from diffguide.guidance import Autoguidance, ClassifierFree, ClassifierGuidance
from diffguide.guidance.nested import Nested
from diffguide.guidance.summed import SummedContrasts
from diffguide.models.protocols import Denoiser

from .laws import CleanClassifier, Examples, Law, LawSamples, WithoutCondition, blur

__all__ = ["METHODS", "MIDDLE", "UNSUITED", "Method", "build_guidance"]

MIDDLE = 2  # position of the scale at which the other values of the knob are tried, and that of the short table
SCALES = (1.5, 2.0, 3.0, 5.0)
INTERVALS = ([0.0, float("inf")], [0.3, 3.0], [0.0, 1.0])  # all noise levels, those in the middle, those near the data


class Method(NamedTuple):
    """How an option of configs/guidance is tried.

    Attributes:
        knob: key of the option, below `guidance.`; "" = none. A knob in capitals is no key but an argument of `objects`.
        values: of the knob; the first is that of the option where it is not in the units of the data.
        scales: of the option.
        settings: other keys, given the law.
        objects: arguments of the constructor that a command would read from files, given the law and the knob's value.
        make: in place of the option, a function of (denoiser, law, scale, value).
        unconditional: whether the guided model has no condition.
        images: whether it is made for pictures, and so is tried on the digits alone.
        sampler: "ode", "sde", "fkc".
        cost: evaluations in units of those of the others, for methods that are not comparable at equal cost.
        counted: the method whose evaluations it has, if it makes others once for all samples; "" = its own.
        named: the w of the law p(x | y)^w p(x)^(1 - w) that it names, given scale and value; None = that of `tilt()`.
    """

    knob: str = "interval"
    values: Sequence[Any] = INTERVALS
    scales: Sequence[float] = SCALES
    settings: Callable[[Law], Mapping[str, Any]] = lambda law: {}
    objects: Callable[[Law, Any], dict[str, Any]] = lambda law, value: {}
    make: Callable[[Denoiser, Law, float, Any], Denoiser] | None = None
    unconditional: bool = False
    images: bool = False
    sampler: str = "ode"
    cost: int = 1
    counted: str = ""
    named: Callable[[float, Any], float] | None = None
    option: str = ""

    def points(self) -> list[tuple[float, Any]]:
        """The pairs (scale, value of the knob): every scale with the first value, one scale with the others."""
        middle = self.scales[min(MIDDLE, len(self.scales) - 1)]
        return [(scale, self.values[0]) for scale in self.scales] + [(middle, value) for value in self.values[1:]]


def plain(scale: float, value: Any) -> float:
    return scale


def clean(**settings: Any) -> Method:
    """A potential: log p(y | x) of clean data, on the law without its condition."""
    return Method(objects=lambda law, value: {"potential": CleanClassifier(law.oracle)}, unconditional=True, **settings)


def by_guide(denoiser: Denoiser, law: Law, scale: float, width: float) -> Denoiser:
    return Autoguidance(denoiser, blur(law.oracle, width), scale)


def by_classifier(denoiser: Denoiser, law: Law, scale: float, extra: float) -> Denoiser:
    parts = {
        "cfg": partial(ClassifierFree, scale=scale),
        "classifier": partial(ClassifierGuidance, classifier=law.oracle, scale=extra),
    }
    return Nested(denoiser, parts)


def by_sum(denoiser: Denoiser, law: Law, scale: float, rescale: float) -> Denoiser:
    parts = {
        "cfg": partial(ClassifierFree, scale=scale),
        "autoguidance": partial(Autoguidance, guide=blur(law.oracle, WIDTHS[0]), scale=scale),
    }
    return SummedContrasts(denoiser, parts, rescale)


WIDTHS = (0.3, 0.15, 0.6)  # of the blurred law that is autoguidance's worse model
EXTRA = (1.0, 0.5, 2.0)
PARTICLES = (4, 2, 8)

METHODS: dict[str, Method] = {
    "none": Method("", [None], [1.0]),
    "cfg": Method(),
    "apg": Method("rule.norm_threshold", (15.0, 1.0, 0.3)),
    "cfg_rescale": Method("rule.phi", (0.7, 0.3, 1.0), images=True),  # a deviation over the values of a sample
    "cfg_zero": Method("rule.zero_init_steps", (1, 0, 3)),
    "cfgpp": Method(scales=(0.05, 0.1, 0.2, 0.4)),
    "rectified_cfgpp": Method(),
    "tcfg": Method(),
    "fdg": Method("rule.low", (0.5, 0.0, 0.8), images=True),
    "mambo_g": Method("rule.damping", (8.0, 2.0, 32.0)),
    "threshold": Method("rule.quantile", (0.995, 0.9, 1.0), images=True),
    "smc_cfg": Method("rule.gain", (0.2, 0.05, 0.5)),
    "adamag": Method("rule.exponent", (4.0, 1.0, 0.0)),
    "vags": Method("rule.kappa", (1.0, 0.5, 2.0)),
    "pmc_cfg": Method("rule.growth", (1.05, 1.15, 1.5)),
    "norm_limit": Method(
        "rule.cap", (1.0, 0.8, 1.25), settings=lambda law: {"rule.patch": 2 if len(law.oracle.shape) == 3 else None}
    ),
    "recfg": Method("rule.share", (1.0, 0.5, 0.25)),
    "recfg_table": Method(
        "count", (64, 16, 200), objects=lambda law, value: {"dataset": LawSamples(law.oracle)}, counted="cfg"
    ),
    "fbg": Method("rule.mixing", (0.95, 0.9, 0.999), scales=(1.0, 1.5, 2.0, 3.0)),
    "negative": Method(settings=lambda law: {"condition": law.unwanted}),
    "compose": Method(
        "weights", ([1.0, -0.25], [1.0, -0.5], [1.0, 0.25]),
        settings=lambda law: {"conditions": [law.label, law.unwanted]},
    ),
    "autoguidance": Method("WIDTH", WIDTHS, make=by_guide),
    "icg": Method(),
    "ltx2": Method("RESCALE", (0.0, 0.35, 0.7), make=by_sum),
    "reference": Method(
        "COUNT", (16, 4, 64), (0.95, 0.9, 0.8, 0.5), objects=lambda law, value: {"references": Examples(law, value)}
    ),
    "higs": Method("share", (0.75, 0.5, 0.9)),
    "momentum": Method("decay", (0.6, 0.3, 0.9), (1.2, 1.5, 2.0, 3.0)),
    "tsr": Method("std", (1.0, 0.5, 0.25)),
    "power": Method(),
    "classifier": Method(
        objects=lambda law, value: {"classifier": law.oracle}, unconditional=True, named=plain
    ),
    "classifier_cfg": Method(
        "EXTRA", EXTRA, (0.5, 1.0, 2.0, 4.0), make=by_classifier, named=lambda scale, extra: scale + extra
    ),
    "implicit_classifier": Method(
        scales=(0.5, 1.0, 2.0, 4.0),
        settings=lambda law: {"posterior.prior": law.oracle.log_totals[:-1].exp().tolist()},
        named=lambda scale, value: 1 + scale,
    ),
    "potential": clean(named=plain),
    "noisy_potential": clean(named=plain),
    "universal": clean(named=plain, knob="backward_rate", values=(0.01, 0.05, 0.2)),
    "freedom": clean(scales=(0.1, 0.2, 0.4, 0.8)),
    "lgd": clean(named=plain, knob="copies", values=(8, 2, 16)),
    "tfg": clean(knob="smoothing", values=(0.01, 0.1, 0.3)),
    "mpgd": clean(scales=(0.05, 0.1, 0.2, 0.4)),
    "cfg, SDE": Method(sampler="sde", option="cfg"),
    "cfg, fkc": Method("PARTICLES", PARTICLES, sampler="fkc", option="cfg"),
    "cfg, fkc x 16": Method("PARTICLES", (8,), sampler="fkc", option="cfg", cost=16),
}  # fmt: skip

MEASUREMENT = "an inverse problem: it needs a measurement of a picture, and its samples are those of a posterior"
BLOCKS = "it perturbs blocks of a network, and a law has none"
UNSUITED: dict[str, str] = {
    "cads": "it adds noise to an embedded condition, and a law embeds none",
    "cfg_parts": "it needs a model of several conditions",
    "clean_classifier": "it reads a network from a file; potential has the perfect classifier of clean data",
    "distilled": "it needs a network that has learned guidance",
    "clip": "it needs pictures and texts",
    **dict.fromkeys(["pag", "seg", "slg", "soft_pag", "tpg", "s2", "tsg"], BLOCKS),
    **dict.fromkeys(["dps", "repaint", "inpaint", "super_resolution", "deblur", "mmps", "tmpd", "jfps"], MEASUREMENT),
}


@cache
def read_option(option: str) -> dict[str, Any]:
    """The keys of configs/guidance/<option>.yaml."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return OmegaConf.to_container(compose("sample", [f"guidance={option}"]).guidance, resolve=True)


def build_guidance(name: str, denoiser: Denoiser, law: Law, scale: float, value: Any) -> Denoiser:
    """The guided law, by the option's own file wherever it needs no object that a command would read from a file.

    Arguments:
        denoiser: the law's oracle, or a counter around it.
        value: of the knob.
    """
    method = METHODS[name]
    inner = WithoutCondition(denoiser) if method.unconditional else denoiser
    if method.make is not None:
        return method.make(inner, law, scale, value)
    cfg = OmegaConf.create(read_option(method.option or name))
    settings = dict(method.settings(law))
    if method.knob and method.knob == method.knob.lower():
        settings[method.knob] = value
    if "scale" in cfg:
        settings["scale"] = scale
    objects = method.objects(law, value)
    for key, setting in settings.items():
        OmegaConf.update(cfg, key, setting)
    for key in objects:
        cfg.pop(key, None)
    return build(cfg, "guidance", inner, kwargs=objects or None)
