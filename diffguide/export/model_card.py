"""The model card of a run, README.md on the hub: what was trained, figures, guidance, how to sample, limits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.store import Loaded
from ..models.protocols import Denoiser
from ..version import __version__
from .paths import shorten_paths

__all__ = ["find_metrics", "read_metrics", "write_card"]

MAX_CLASSES = 20  # class names in the text
TAGS = ["diffusion", "guidance", "diffguide"]
CARD = """---
{header}---

# {name}

{what}

## Training

| | |
|---|---|
{training}

## Data

{data}

## Figures

{figures}

## Guidance

{guidance}

## Sample

```bash
pip install diffguide
diffguide-sample checkpoint={repo} n=16 seed=0
```

```python
import diffguide

model = diffguide.load("{repo}")  # model(x_t, t, y) -> Prediction(x_0, eps)
```

Sample i of a run is a function of its seed and of the settings alone: the same command gives the same images, whatever
the size of its batches.

## Limits

{limits}
"""
CONVENTION = (
    "`weak + scale (strong - weak)`: scale 1 is off, 0 is the weak prediction alone, and scale 1 + w is the w of Ho and "
    "Salimans (arXiv 2207.12598). Potentials and classifiers multiply their gradient: 0 is off, 1 is Bayes' rule."
)
LIMITS = """- The model repeats the faults and biases of its data, and may reproduce examples of it.
- Figures hold for the sampler, the number of steps and the guidance that they were measured with.
- Paths in the configuration are shortened to their last name: a command that reads the data needs dataset.path=..."""


def find_metrics(run: Path) -> list[Path]:
    """The files metrics.json in a run folder."""
    return sorted(run.rglob("metrics.json")) if run.is_dir() else []


def read_metrics(paths: Sequence[Path], sha256: str) -> list[dict[str, Any]]:
    """The records of metrics.json, each a file or the folder of an evaluation.

    Arguments:
        sha256: of the checkpoint of the card.

    Raises:
        ValueError: a file that is no record of an evaluation, or one of another checkpoint.
    """
    records = []
    for path in paths:
        file = path / "metrics.json" if path.is_dir() else path
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            figures = dict(record["figures"])
            for part in figures.values():
                float(part["value"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"metrics: {file} is no metrics.json of diffguide-eval ({error!r})") from error
        if record.get("checkpoint_sha256") not in (None, sha256):
            raise ValueError(f"metrics: {file} is of another checkpoint than the run's newest: leave it out")
        if "adapter_scale" in record:  # of the model as it was trained there is none
            raise ValueError(f"metrics: {file} is of the run with an adapter at another strength: leave it out")
        records.append(record)
    return records


def write_card(
    loaded: Loaded, config: Mapping[str, Any], repo: str, license: str, metrics: Sequence[Mapping[str, Any]]
) -> str:
    """The text of a model card.

    Arguments:
        loaded: the model and its facts.
        config: of the run, without paths of this machine.
        repo: name on the hub, owner/name.
        license: identifier of the hub.
        metrics: records of evaluations of this checkpoint.
    """
    facts, model = loaded.facts, loaded.model
    image = len(facts["shape"]) == 3
    header = {"license": license, "library_name": "diffguide", "tags": TAGS}
    if image and isinstance(model, Denoiser):
        header |= {"pipeline_tag": "unconditional-image-generation"}
    data = f"{'images' if image else 'vectors'} {list(facts['shape'])}"
    label = f" of {len(facts['class_names'])} classes" if facts["class_names"] else ""
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=config.get("name") or repo.split("/")[-1],
        what=f"A {'denoiser' if isinstance(model, Denoiser) else type(model).__name__} of {data}{label}, with diffguide "
        f"{facts.get('version', __version__)}.",
        training="\n".join(f"| {key} | {value} |" for key, value in training_facts(loaded, config).items()),
        data=data_facts(facts, config),
        figures=figure_table(metrics),
        guidance=guidance_facts(config.get("guidance"), model),
        repo=repo,
        limits=LIMITS,
    )


def class_of(node: Any) -> str:
    """The class of a node of the configuration."""
    return node["_target_"].rpartition(".")[2] if isinstance(node, Mapping) and "_target_" in node else "unknown"


def training_facts(loaded: Loaded, config: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the table on training."""
    objective = config.get("objective") or {}
    training = config.get("training") or {}
    parameters = sum(part.numel() for part in loaded.model.parameters())
    facts: dict[str, Any] = {
        "network": f"{class_of(loaded.config.get('backbone'))}, {parameters:,} parameters",
        "adapter": describe_adapter(loaded.config.get("adapter")),
        "schedule": class_of(config.get("schedule")),
        "objective": class_of(objective),
        "parameterization": class_of(objective.get("parameterization")),
        "labels dropped": objective.get("p_uncond"),
        "images seen": f"{loaded.facts['images']:,}",
        "batch size": training.get("batch_size"),
        "learning rate": training.get("learning_rate"),
        "seed": config.get("seed"),
        "precision": (config.get("engine") or {}).get("precision"),
        "held-out loss": loaded.facts.get("validation_loss"),
        "started from": describe_ancestry(config.get("ancestry")),
        "converted from": describe_origin(loaded.facts.get("origin")),
    }
    return {key: value for key, value in facts.items() if value not in (None, "unknown")}


def describe_adapter(node: Any) -> str | None:
    """The adapter that was trained beside the network, in one cell."""
    return f"{class_of(node)} of rank {node['rank']}, merged" if isinstance(node, Mapping) else None


def describe_origin(origin: Any) -> str | None:
    """Where a converted model comes from, in one cell."""
    if not isinstance(origin, Mapping):
        return None
    return ", ".join(f"{key} {value}" for key, value in shorten_paths(dict(origin)).items())


def describe_ancestry(ancestry: Any) -> str | None:
    """The model that a training started from, in one cell."""
    if not isinstance(ancestry, Mapping):
        return None
    adapter = {key: ancestry[key] for key in ("adapter", "adapter_sha256", "adapter_scale") if key in ancestry}
    file = {"checkpoint": ancestry.get("checkpoint"), "sha256": ancestry.get("sha256")} | adapter
    return describe_origin({**(ancestry.get("origin") or {}), **file})


def data_facts(facts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The section on the data."""
    record, names = facts.get("data") or {}, list(facts["class_names"])
    lines = [f"- {class_of(config.get('dataset'))}, examples of shape {list(facts['shape'])}"]
    if record:
        lines.append(f"- {record['count']:,} examples or files, SHA-256 `{record['sha256']}`")
    if names:
        more = f" and {len(names) - MAX_CLASSES} more" if len(names) > MAX_CLASSES else ""
        lines.append(f"- {len(names)} classes: {', '.join(names[:MAX_CLASSES])}{more}")
    return "\n".join(lines)


def figure_table(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A table of the figures of evaluations."""
    rows = [
        f"| {record.get('metric')} | {name} | {float(part['value']):.4g} | {spread(part)} | {part.get('n')} | "
        f"{record.get('seed')} | {part.get('unit') or ''} |"
        for record in metrics
        for name, part in record["figures"].items()
    ]
    head = "| metric | figure | value | standard error | n | seed | unit |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *rows]) if rows else "None were measured: `diffguide-eval checkpoint=... metric=auto` does."


def spread(figure: Mapping[str, Any]) -> str:
    error = figure.get("standard_error")
    return "" if error is None else f"{float(error):.2g}"


def guidance_facts(guidance: Any, model: Any) -> str:
    """The section on guidance: the run's, and what the scale means."""
    if not isinstance(model, Denoiser):
        return "The model is no generator."
    name = class_of(guidance)
    own = f"`{name}`" + (f" with scale {guidance['scale']}" if name != "unknown" and "scale" in guidance else "")
    null = "was trained without a label too" if model.has_null else "was not trained without a label"
    lines = [f"- The run's own pictures have {own if name not in ('unknown', 'Unguided') else 'no guidance'}."]
    if model.conditional:
        lines.append(f"- The network {null}.")
    return "\n".join([*lines, f"- {CONVENTION}"])
