"""diffguide-eval metric=likelihood, of an oracle and of a trained network."""

import json

import pytest

from diffguide.evaluate import main as evaluate


def test_vectors_have_likelihoods_by_every_method(command, tmp_path):
    """Bound, ODE and exact density of an oracle on exact samples of itself."""
    done = command(
        evaluate, "oracle=gmm2d", "schedule=cosine", "metric=likelihood", "metric.elbo.levels=8", "metric.elbo.pilot=4",
        "metric/trace@metric.ode.trace=exact", "metric.ode.solver.steps=32", "n=12", "metric.elbo.conditional=false",
        at=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads((tmp_path / done.folder / "metrics.json").read_text())
    names = ["nll_elbo", "nll_ode_given_class", "nll_exact_given_class", "nll_ode_given_class_minus_exact_given_class"]
    assert list(record["figures"]) == names
    flow, exact = (record["figures"][f"nll_{name}_given_class"]["value"] for name in ("ode", "exact"))
    assert flow == pytest.approx(exact, abs=0.02)
    assert record["nll_ode_given_class"]["solver"].startswith("Runge-Kutta 4, 32")
    assert len(record["curve"]) == 8 and (tmp_path / done.folder / "elbo_start.png").exists()


def test_digits_have_likelihoods_in_bits_per_dimension(command, at):
    """A trained network: bound and ODE side by side, in bits/dim."""
    done = command(
        evaluate, "checkpoint=outputs/train/digits/v001", "metric=likelihood", "metric.elbo.levels=4", "metric.elbo.pilot=2",
        "metric.ode.solver.steps=4", "metric.ode.trace.probes=1", "n=1", at=at,
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads((at / done.folder / "metrics.json").read_text())
    assert list(record["figures"])[:2] == ["nll_elbo_given_class", "nll_ode_given_class"]
    assert list(record["figures"])[2:] == ["nll_elbo_given_class_minus_ode_given_class"]
    assert {figure["standard_error"] for figure in record["figures"].values()} == {None}  # of one example
    assert {figure["unit"] for figure in record["figures"].values()} == {"bits/dim"}
    assert record["nll_elbo_given_class"]["values"] == 17
    refused = command(evaluate, "checkpoint=outputs/train/digits/v001", "metric=log_density", at=at)
    assert refused.code == 1 and "metric=log_density needs a log-density" in refused.err
