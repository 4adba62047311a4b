"""The parts of the benchmark run on small networks and give the rows of its table; the figures themselves are not tested."""

import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import benchmark
import pytest
import torch
from benchmarks import (
    big_networks,
    clocks,
    networks,
    noise,
    overhead,
    peer_networks,
    peer_samplers,
    rows,
    sampling,
    start,
)
from torch import nn

CPU = torch.device("cpu")
SMALL = ["backbone.channels=4", "backbone.blocks=1", "backbone.attention=[]", "training.batch_size=16"]
TINY = ("dataset=digits", *SMALL)
SESSION = rows.Session(CPU, rounds=1, peak_flops=1e9)


@pytest.fixture
def without_peers(monkeypatch):
    """No peer is installed."""
    for module in rows.PEERS.values():
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    """Products of small matrices."""
    monkeypatch.setattr(clocks, "PEAK_SIDE", {"cpu": 16})


def test_the_extra_installs_the_peers():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {
        requirement.partition(">=")[0].partition("<")[0] for requirement in project["optional-dependencies"]["bench"]
    }
    assert names == {*rows.PEERS, "setuptools"}


def test_training_is_compared_with_bare_steps():
    (row,) = overhead.measure_training(SESSION, 1, *SMALL)
    assert (row.part, row.base) == ("training", "bare steps") and row.bar == "at most 1.05"
    rates = row.figures["images_per_second"], row.figures["bare_images_per_second"]
    assert row.ratio == pytest.approx(rates[1] / rates[0])


def test_a_sampler_is_compared_with_bare_calls():
    ddim, ddpm = overhead.measure_samplers(SESSION, ["ddim", "ddpm"], *SMALL)
    assert (ddim.base, ddim.figures["calls"], ddim.bar) == ("20 bare calls", 20, "at most 1.05")
    assert (ddpm.base, ddpm.bar) == ("20 bare calls", "at most 1.15")


def test_oracle_and_levels_are_measured():
    (row,) = overhead.measure_oracle(SESSION, components=10, points=10)
    assert row.figures["seconds"] > 0
    found = list(overhead.measure_levels(SESSION, (4,), *SMALL))
    assert [row.base for row in found] == ["a plain denoiser"] * 2 and all(row.ratio > 0 for row in found)


def test_networks_are_measured_in_both_precisions_and_missing_peers_are_named(without_peers):
    own = {"diffguide unet": TINY, "diffguide wide": (*TINY, "backbone.channels=8")}
    peers = {package: None for package in networks.SCALES["8x8"].peers}  # never built
    found = list(networks.measure_networks(SESSION, {"8x8": networks.Scale(8, 1, {"cpu": 2}, own, peers)}))
    assert [row.what for row in found] == [*own, *peers] * 2
    single, wide, *missing = found[:5]
    assert single.ratio == 1 and wide.base == "diffguide unet"
    assert found[5].base == "diffguide unet, fp32"
    assert {row.measured for row in missing} == {"not installed"} and {row.ratio for row in missing} == {None}
    ratio = wide.figures["flops_per_image"] / single.figures["flops_per_image"]
    assert wide.figures["ratio_per_flop"] == pytest.approx(wide.ratio / ratio)
    rate = found[5].figures["flops_per_second"]
    assert found[5].figures["share_of_peak"] == pytest.approx(rate / 1e9)  # the peak that the session was told


def test_the_peak_is_that_of_a_product_in_the_same_rounds(monkeypatch):
    contender = networks.Contender("a", lambda: None, parameters=10, flops=3e3)
    base = networks.Contender("b", lambda: None, parameters=20, flops=1e3)
    seconds = {"own": [2.0], "base": [1.0], "product": [0.5]}
    monkeypatch.setattr(networks, "alternate", lambda works, clock, rounds, repeats: seconds)
    row = networks.compare(rows.Session(CPU, rounds=1), contender, base, "b", "case", 4, "bf16")
    peak = clocks.PRODUCTS * 2 * 16**3 / 0.5
    assert row.ratio == 2 and row.figures["images_per_second"] == 2
    assert row.figures["share_of_peak"] == pytest.approx(4 * 3e3 / 2 / peak)
    assert (row.figures["ratio_per_parameter"], row.figures["ratio_per_flop"]) == pytest.approx((4, 2 / 3))


def test_operations_are_counted_with_attention():
    layer, x = nn.Linear(3, 5), torch.randn(2, 3)
    forward_and_gradient_of_weights = 2 * (2 * 2 * 3 * 5)
    assert networks.count_flops(lambda: layer(x).sum().backward(), layer) == forward_and_gradient_of_weights
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    attention = networks.count_flops(
        lambda: nn.functional.scaled_dot_product_attention(q, q, q).sum().backward(), layer
    )
    assert attention == 6 * (2 * 4 * 4 * 8)  # two products, and four of the backward pass


def test_runs_of_samplers_are_compared_with_bare_calls_and_missing_peers_are_named(without_peers):
    found = list(sampling.measure_sampling(SESSION, (2,), *SMALL))
    cases = dict.fromkeys(row.case for row in found)
    assert [case.split(",")[0] for case in cases] == ["heun 18"] * 2 + ["dpmpp_2m 10"] * 2
    for case, calls in zip(cases, (36, 0, 10, 0)):
        ours, *others = [row for row in found if row.case == case]
        assert ours.what == "diffguide" and (not calls or ours.figures["calls"] == calls)
        named = {row.what: row.measured for row in others}
        assert {package: named[package] for package in peer_samplers.PEER_SAMPLERS} == dict.fromkeys(
            peer_samplers.PEER_SAMPLERS, "not installed"
        )


def test_noise_is_compared_with_randn():
    found = list(noise.measure_noise(SESSION, ((2, 1, 2, 2),), steps=2))
    assert [row.what for row in found] == ["Noise.increment", "torch.randn"]
    assert found[0].case == "2 x 1 x 2 x 2, 2 steps" and found[1].ratio == 1


def test_the_share_of_the_peak_is_that_of_every_variant():
    network = big_networks.BigNetwork(
        TINY, (1, 8, 8), {"cpu": 2}, {"": (), ", channels_last": ("backbone.channels_last=true",)}, "at least 35 %"
    )
    found = list(big_networks.measure_device(SESSION, {"small": network}, compiled=(False,)))
    assert [row.what for row in found] == ["eager", "eager, channels_last", "Noise.increment"]
    for row in found[:2]:
        share = row.figures["flops_per_second"] / 1e9
        assert row.figures["share_of_peak"] == pytest.approx(share) and row.part == "device"
    assert found[2].ratio > 0 and found[2].bar == "at most 0.01"


def test_commands_are_compared_with_the_import_of_torch(monkeypatch, tmp_path):
    def run(command, **options):
        broken = "k_diffusion" in command[-1]
        return SimpleNamespace(returncode=int(broken), stderr="Traceback\nImportError: no pkg" if broken else "")

    monkeypatch.setattr(start.subprocess, "run", run)
    monkeypatch.setattr(start, "missing_peers", lambda: ["azula"])
    monkeypatch.setattr(start.tempfile, "mkdtemp", lambda: str(tmp_path))
    monkeypatch.setattr(start.os, "times", iter_times().__next__)
    found = {row.what: row for row in start.measure_start(SESSION)}
    assert found[start.PEER_IMPORTS["azula"]].measured == "not installed"
    assert found[start.PEER_IMPORTS["k-diffusion"]].measured.endswith("failed: ImportError: no pkg")
    assert {row.ratio for row in found.values()} == {1.0, None}  # the clock of this test ticks once a command
    assert {"diffguide.load", "Enter to first training step", "diffguide-train --help"} <= {*found}
    assert not tmp_path.exists()


def iter_times():
    """Times of children, one second later at each call."""
    second = 0
    while True:
        yield SimpleNamespace(children_user=second, children_system=0)
        second += 1


def test_the_table_and_the_json_have_the_same_rows(monkeypatch, tmp_path, capsys, without_peers):
    part = {"noise": lambda session: noise.measure_noise(session, ((2, 1, 2, 2),), steps=2)}
    monkeypatch.setattr(benchmark, "PARTS", part)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    path = tmp_path / "speed.json"
    benchmark.main(["--parts", "noise", "--rounds", "1", "--json", str(path)])
    lines, written = capsys.readouterr().out.splitlines(), json.loads(path.read_text())
    assert lines[1].startswith("not installed: diffusers, denoising-diffusion-pytorch, azula, k-diffusion;")
    table = [line for line in lines if line.startswith("| noise")]
    assert len(table) == len(written["rows"]) == 2
    for line, row in zip(table, written["rows"]):
        assert line.split(" | ")[1:4] == [row["case"], row["what"], row["measured"]]
        assert row["figures"]["milliseconds_per_step"] > 0
    assert {"device", "threads", "rounds", "clock", "versions"} <= {*written} and written["versions"].keys() == {
        "torch",
        "diffguide",
    }


def test_an_interrupted_run_keeps_its_rows(monkeypatch, tmp_path):
    def measure(session):
        yield rows.Row("noise", "case", "what", "")
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "PARTS", {"noise": measure})
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(["--parts", "noise", "--json", str(tmp_path / "speed.json")])
    assert [row["case"] for row in json.loads((tmp_path / "speed.json").read_text())["rows"]] == ["case"]


def test_the_readme_table_has_a_column_per_library(tmp_path, capsys):
    found = [
        rows.Row(
            "networks", "8x8", "diffguide unet", "", 1.0, figures={"images_per_second": 400, "share_of_peak": 0.5}
        ),
        rows.Row("networks", "8x8", "azula", "", 0.5, figures={"ratio_per_flop": 1.25}),
        rows.Row("networks", "8x8", "diffusers", "not installed"),
        rows.Row("sampling", "heun, 2 images", "diffguide", "", 1.05),
        rows.Row("sampling", "heun, 2 images, own work", "k-diffusion", "", 1.0, figures={"milliseconds_per_run": 2.5}),
        rows.Row("start", "CPU s", "diffguide.load", "", 1.5),
        rows.Row("start", "CPU s", start.PEER_IMPORTS["azula"], "", 1.25),
        rows.Row("start", "CPU s", "diffguide-train --help", "", 0.2),
        rows.Row("noise", "2 x 2", "Noise.increment", "", 6.0, "torch.randn"),
        rows.Row("noise", "2 x 2", "torch.randn", "", 1.0, "torch.randn"),
    ]
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"rows": [row.as_dict() for row in found]}))
    benchmark.main(["--summarize", str(path)])
    head, _, *body = capsys.readouterr().out.splitlines()
    assert head == "|  | diffguide | diffusers | denoising-diffusion-pytorch | azula | k-diffusion |"
    assert [line.split(" | ")[1:] for line in body[:4]] == [
        ["400 img/s, 50% of the peak", "", "", "0.50 (1.25)", " |"],
        ["1.05", "", "", "", " |"],
        ["", "", "", "", "2.5 |"],
        ["1.50", "", "", "1.25", " |"],
    ]
    assert body[5:] == [
        "- diffguide-train --help over `import torch`: 0.20",
        "- per-sample Brownian noise over torch.randn, 2 x 2: 6.00",
    ]


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "0"], ["--parts", "speed"]])
def test_wrong_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_rounds_alternate_and_the_first_is_not_counted():
    order, ticks = [], iter(range(1, 100))

    def clock(work):
        work()
        return next(ticks)

    seconds = clocks.alternate({name: lambda name=name: order.append(name) for name in "ab"}, clock, rounds=2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert seconds == {"a": [3, 6], "b": [4, 5]}
    assert clocks.median_ratio(seconds, "a", "b") == pytest.approx((3 / 4 + 6 / 5) / 2)


def test_a_clock_divides_by_the_repeats():
    calls = []
    clocks.Clock(CPU)(lambda: calls.append(1), repeats=3)
    assert len(calls) == 3


@pytest.mark.slow
@pytest.mark.parametrize("package", networks.SCALES["8x8"].peers)
def test_networks_of_installed_peers_train(package):
    pytest.importorskip(rows.PEERS[package])
    build = {
        "diffusers": lambda **size: peer_networks.build_diffusers((32, 32), **size),
        "denoising-diffusion-pytorch": lambda **size: peer_networks.build_denoising_diffusion_pytorch(
            8, (1, 2), **size
        ),
        "azula": lambda **size: peer_networks.build_azula((16, 16), **size),
    }[package]
    for precision in networks.PRECISIONS:
        contender = networks.build_peer(package, build, (1, 8, 8), 2, precision, CPU)
        contender.step()
        assert contender.parameters > 0 and contender.flops > 0


@pytest.mark.slow
@pytest.mark.parametrize("package", peer_samplers.PEER_SAMPLERS)
def test_samplers_of_installed_peers_call_the_network_as_often(package):
    pytest.importorskip(rows.PEERS[package])
    problem = sampling.build_problem(2, CPU, *SMALL)
    for method, (_, steps, calls) in sampling.CASES.items():
        run = peer_samplers.PEER_SAMPLERS[package](problem, method, steps)
        rows_per_image = 2 if package == "azula" else 1  # two calls of B rows in place of one of 2 B
        count = sampling.count_calls(run, problem.model.backbone) / rows_per_image
        assert steps * calls - 1 <= count <= steps * calls  # Heun's last step may be Euler's
