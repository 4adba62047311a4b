"""The short table of the README, from the rows of a JSON file: a column per library."""

from collections.abc import Iterator, Mapping, Sequence

from .networks import PART as NETWORKS
from .noise import PART as NOISE
from .rows import PEERS, format_line
from .sampling import OWN_WORK
from .sampling import PART as SAMPLING
from .start import PART as START
from .start import PEER_IMPORTS

JsonRow = Mapping[str, object]
LOAD = "diffguide.load"  # what stands beside the imports of the peers
START_ROWS = ("diffguide-train --help", "Enter to first training step", "Enter to grid of 64 images")


def summarize(rows: Sequence[JsonRow]) -> str:
    """A Markdown table: training steps, runs of samplers, own work and imports, diffguide first, then its peers.

    Below it stand the figures of diffguide alone: commands over `import torch`, noise over torch.randn.
    """
    head = ["", "diffguide", *PEERS]
    table = [format_line(head), f"|{'---|' * len(head)}"]
    for part, line in ((NETWORKS, network_cells), (SAMPLING, sampling_cells)):
        for case in dict.fromkeys(row["case"] for row in rows if row["part"] == part):
            found = {row["what"]: row for row in rows if (row["part"], row["case"]) == (part, case)}
            table.append(format_line(list(line(str(case), found))))
    start = {row["what"]: row for row in rows if row["part"] == START}
    if LOAD in start:
        cells = (ratio_of(start.get(what)) for what in (LOAD, *(PEER_IMPORTS[package] for package in PEERS)))
        table.append(format_line([f"`{LOAD}`; import of the peer; over `import torch`", *cells]))
    lines = [f"- {what} over `import torch`: {ratio_of(start[what])}" for what in START_ROWS if what in start]
    for row in rows:
        if row["part"] == NOISE and row["what"] != row["base"]:
            lines.append(f"- per-sample Brownian noise over {row['base']}, {row['case']}: {ratio_of(row)}")
    return "\n".join([*table, "", *lines])


def ratio_of(row: JsonRow | None) -> str:
    """The ratio of a row, empty if there is none."""
    return "" if row is None or row["ratio"] is None else f"{row['ratio']:.2f}"


def network_cells(case: str, found: Mapping[object, JsonRow]) -> Iterator[str]:
    """images/s and share of the peak, then the time per image over diffguide's, and that per FLOP."""
    yield f"training step, {case}: time per image over diffguide's (per FLOP)"
    figures = next(iter(found.values()))["figures"]
    yield f"{figures['images_per_second']:.3g} img/s, {figures['share_of_peak']:.0%} of the peak"
    for package in PEERS:
        ratio = ratio_of(found.get(package))
        yield ratio and f"{ratio} ({found[package]['figures']['ratio_per_flop']:.2f})"


def sampling_cells(case: str, found: Mapping[object, JsonRow]) -> Iterator[str]:
    """The time of a run over that of bare calls; of own work the milliseconds."""
    own = case.endswith(OWN_WORK)
    yield f"{case}, ms a run" if own else f"{case}: run over bare calls"
    for library in ("diffguide", *PEERS):
        row = found.get(library)
        if own:
            yield f"{row['figures']['milliseconds_per_run']:.1f}" if row and row["figures"] else ""
        else:
            yield ratio_of(row)
