"""The rows of the benchmark's table, and what all its parts share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch

from .clocks import Clock

PEERS = {  # package -> the module that its users import
    "diffusers": "diffusers",
    "denoising-diffusion-pytorch": "denoising_diffusion_pytorch",
    "azula": "azula",
    "k-diffusion": "k_diffusion",
}
HEAD = ("part", "case", "what", "measured", "ratio", "of the time of", "bar")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Arguments:
        part, case, what: what was measured.
        measured: the figures as text.
        ratio: time over the time of `base`, per unit of the same work; above 1 is slower.
        bar: the bound that the row must keep, as text.
        figures: the figures for the JSON file; the names state the units.
    """

    part: str
    case: str
    what: str
    measured: str
    ratio: float | None = None
    base: str = ""
    bar: str = ""
    figures: Mapping[str, float | int] = field(default_factory=dict)

    def cells(self) -> list[str]:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return [self.part, self.case, self.what, self.measured, ratio, self.base, self.bar]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass
class Session:
    """The device and the number of counted rounds.

    Arguments:
        peak_flops: of the device in bfloat16, operations per second; None = a product of matrices is timed in every round.
    """

    device: torch.device
    rounds: int = 5
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)


def format_line(cells: list[str] | tuple[str, ...]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def missing_peers() -> list[str]:
    """The peers that are not installed."""
    return [package for package, module in PEERS.items() if find_spec(module) is None]


def why_unavailable(package: str) -> str:
    """Why a peer cannot be used, in words for the table; empty if it can be imported."""
    module = PEERS[package]
    try:
        import_module(module)
    except ImportError as error:
        return "not installed" if error.name == module else f"cannot be imported: {error}"
    return ""


def installed_versions() -> dict[str, str]:
    """Versions of the packages that are compared."""
    missing = missing_peers()
    return {name: version(name) for name in ("torch", "diffguide", *PEERS) if name not in missing}
