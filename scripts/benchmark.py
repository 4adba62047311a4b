"""Speed of diffguide beside its peers and beside the limits of the device: one table, and the same figures as JSON.

    pip install '.[bench]'
    python scripts/benchmark.py [--parts start noise sampling networks] [--device cuda] [--rounds 5] [--json FILE]
    python scripts/benchmark.py --summarize FILE    # the README's short table, from that file

These parts are the default; the whole takes about ten minutes on one core:
start: CPU seconds of commands and imports over those of `import torch`: --help, diffguide.load, Enter to the first training
    step, Enter to a grid of 64 images, imports of the peers.
noise: increments of one Brownian path per sample over torch.randn.
sampling: heun in 18 and dpmpp_2m in 10 steps with classifier-free guidance over bare calls of the same network, and the
    samplers' own work with a network that does nothing, beside k-diffusion, diffusers and azula.
networks: full training steps of networks of equal kind at 8x8 and 32x32 in fp32 and bf16, beside diffusers,
    denoising-diffusion-pytorch and azula: images/s, per parameter, per FLOP, share of the matmul peak.

Others, on request:
training: images/s of metrics.jsonl over those of bare forward, backward, clip and step of the same objective.
samplers: 64 images with the default network and each sampler over as many bare calls.
oracle: one call of a mixture of 1,000 components.
levels: training and sampling steps of a classifier of noise levels over those of a plain denoiser with the same trunk.
imported: a UNet2DModel of diffusers under guided sampling over its bare calls and the library's own loop; memory of loading
    and converting.
device: share of the matmul peak of DiT-B/2 and the 57 M U-Net in bf16, on a GPU also compiled; noise over a sampling call.
    Made for `--device cuda`; on a CPU a batch is one image.

A ratio is a time over the time that the row names, per unit of the same work; above 1 is slower. Rounds alternate, and
figures are medians. On a CPU times are CPU seconds of the process, on one thread unless `--threads` says more; on a GPU
they are seconds between events. Peers that are not installed are named and left out.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks import big_networks, imported, networks, noise, overhead, sampling, start, summary
from benchmarks.rows import HEAD, Row, Session, format_line, installed_versions, missing_peers

PARTS: dict[str, Callable[[Session], Iterator[Row]]] = {
    "start": start.measure_start,
    "noise": noise.measure_noise,
    "sampling": sampling.measure_sampling,
    "networks": networks.measure_networks,
    "training": overhead.measure_training,
    "samplers": overhead.measure_samplers,
    "oracle": overhead.measure_oracle,
    "levels": overhead.measure_levels,
    "device": big_networks.measure_device,
    "imported": imported.measure_imported,
}
DEFAULT_PARTS = ("start", "noise", "sampling", "networks")


def name_processor() -> str:
    """The processor and the vector instructions that torch uses."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]} ({torch.backends.cpu.get_cpu_capability()})"


def describe(session: Session) -> dict[str, object]:
    """What the figures depend on."""
    on_gpu = session.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else name_processor(),
        "threads": torch.get_num_threads(),
        "rounds": session.rounds,
        "clock": "seconds between events of the device" if on_gpu else "CPU seconds of the process",
        "versions": installed_versions(),
    }


def print_table(session: Session, parts: dict[str, Callable[[Session], Iterator[Row]]], rows: list[Row]) -> None:
    """Prints each row as soon as it is measured, and appends it to `rows`."""
    facts = describe(session)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"{facts['device']}, {facts['threads']} threads, {facts['rounds']} rounds, {facts['clock']}; {versions}")
    if missing := missing_peers():
        print(f"not installed: {', '.join(missing)}; pip install '.[bench]' installs them")
    print(f"\n{format_line(HEAD)}\n|{'---|' * len(HEAD)}", flush=True)
    for measure in parts.values():
        for row in measure(session):
            rows.append(row)
            print(format_line(row.cells()), flush=True)


def write_json(path: Path, session: Session, rows: list[Row]) -> None:
    """Writes {device, threads, rounds, clock, versions, rows: [{part, case, what, ratio, figures, ...}]}."""
    path.write_text(json.dumps({**describe(session), "rows": [row.as_dict() for row in rows]}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT_PARTS, help="what to measure")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds per measurement")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; CPU seconds of several threads add up")
    parser.add_argument("--samplers", nargs="+", choices=overhead.SAMPLERS, help="of --parts samplers; all by default")
    parser.add_argument("--peak", type=float, help="of bf16, TFLOP/s, such as 788; a product of matrices by default")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--summarize", type=Path, help="print the README's table from such a file; nothing is measured")
    chosen = parser.parse_args(arguments)
    if chosen.summarize:
        print(summary.summarize(json.loads(chosen.summarize.read_text())["rows"]))
        return
    if chosen.rounds < 1 or chosen.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: this machine has no such device")
    torch.set_num_threads(chosen.threads)
    session = Session(torch.device(chosen.device), chosen.rounds, chosen.peak and 1e12 * chosen.peak)
    parts = {name: PARTS[name] for name in chosen.parts}
    if chosen.samplers and "samplers" in parts:
        parts["samplers"] = lambda session: overhead.measure_samplers(session, chosen.samplers)
    rows: list[Row] = []
    try:
        print_table(session, parts, rows)
    finally:  # an interrupted run keeps what it has
        if chosen.json:
            write_json(chosen.json, session, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
