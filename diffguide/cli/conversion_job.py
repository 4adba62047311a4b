"""The configuration of diffguide-convert as a typed job."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.allowlist import ROLES
from ..config.build import ConfigError, build
from ..config.type_checks import check_types
from ..conversion.architecture import Architecture
from ..conversion.job import ConversionJob
from ..export.job import ExportJob
from .settings import read_settings

__all__ = ["build_conversion_job"]


@dataclass(frozen=True)
class ConversionSettings:
    """The root keys of diffguide-convert, see convert.yaml."""

    source: str
    target: str
    name: str | None
    class_names: str | Sequence[str] | None
    null_class: int | None
    adapter: str | None
    adapter_scale: float
    trust: Sequence[str]


def build_conversion_job(config: dict[str, Any]) -> ConversionJob | ExportJob:
    """Builds the conversion; reads nothing but the file of class names, and writes nothing.

    Arguments:
        config: composed and resolved.

    Raises:
        ConfigError: an invalid value, a target that exists, or not exactly one of `architecture` and `to`.
    """
    chosen = [key for key in ("architecture", "to") if config.get(key) is not None]
    if len(chosen) != 1:
        raise ConfigError(
            f"{'both' if chosen else 'neither'} architecture and to: give architecture=<family> to make a run of published "
            "weights, or to=<format> to take a run to another library"
        )
    for key in ("source", "target"):
        if config[key] in ("???", ""):
            raise ConfigError(f"{key} must be given: diffguide-convert SOURCE TARGET {chosen[0]}=<option>")
    settings = read_settings(ConversionSettings, config)
    target = Path(settings.target).expanduser()
    if target.exists() or target.is_symlink():
        raise ConfigError(f"target {settings.target} exists, and nothing is overwritten: choose another folder")
    if chosen == ["to"]:
        return export_run(config, settings, target)
    return convert_weights(config, settings, target)


def export_run(config: Mapping[str, Any], settings: ConversionSettings, target: Path) -> ExportJob:
    """The export of a trained model."""
    for key in ("name", "class_names"):
        if getattr(settings, key) is not None:
            raise ConfigError(f"{key} has no effect with to=, which keeps that of the run: leave it out")
    check_types(config["to"], "to", ROLES["to"].given)
    source = Path(settings.source).expanduser()
    chosen = build(config["to"], "to")
    if not chosen.merges_adapter and (settings.adapter is not None or settings.adapter_scale != 1):
        raise ConfigError(f"adapter and adapter_scale have no effect with to={chosen.option}: leave them out")
    return ExportJob(
        chosen, source, target, settings.trust, settings.null_class, settings.adapter, settings.adapter_scale
    )


def convert_weights(config: Mapping[str, Any], settings: ConversionSettings, target: Path) -> ConversionJob:
    """The conversion of published weights."""
    if settings.null_class is not None:
        raise ConfigError(
            "null_class has no effect with architecture=, which has its own where it is needed: leave it out"
        )
    if settings.adapter is not None or settings.adapter_scale != 1:
        raise ConfigError(
            "adapter and adapter_scale have no effect with architecture=: give them where the run is used"
        )
    check_types(config["architecture"], "architecture", ROLES["architecture"].given)
    name = target.resolve().name if settings.name is None else settings.name
    if name in ("", ".", "..") or "/" in name:
        raise ConfigError(f"name must be the name of a folder, without slashes, got {name!r}")
    architecture = build(config["architecture"], "architecture")
    if not isinstance(architecture, Architecture):
        raise ConfigError(f"architecture: {type(architecture).__name__} is no Architecture")
    return ConversionJob(
        architecture=architecture,
        source=Path(settings.source).expanduser(),
        target=target,
        name=name,
        class_names=read_class_names(settings.class_names),
    )


def read_class_names(names: str | Sequence[str] | None) -> Sequence[str] | None:
    """The names in a list, or the lines of a file of this path.

    Raises:
        ConfigError: a file that cannot be read.
    """
    if not isinstance(names, str):
        return names
    try:
        return [
            line.strip() for line in Path(names).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise ConfigError(f"class_names: cannot read {names}: {error}") from error
