"""Do pictures of shapes show what their texts ask for? Seen and unseen combinations, other words, against diversity.

    python scripts/shapes_alignment.py outputs/train/shapes_text/v001 [more runs] [--n 400] [--scales 0 1 2 3 5]

For each run of `experiment=shapes_text` and each guidance: the share of samples with all attributes right, for prompts that
name all six attributes of combinations that training shows (seen) and never shows (unseen); for seen combinations in word
orders and by synonyms that training never has; and the diversity of pictures whose prompts leave attributes open (1 = as
diverse as the data; 20 prompts, 20 pictures each). The last lines are the means over the runs. The samples have the seeds
0, 1, ... and 20 steps of dpmpp_2m.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import diffguide
from diffguide.backbones.conditions import RowCondition
from diffguide.datasets.shapes import prompts
from diffguide.evaluation.quality.alignment import diversity_figures, judge_pictures
from diffguide.figures.image_grids import quantize
from diffguide.guidance import APG, ClassifierFree
from diffguide.models.protocols import Denoiser
from diffguide.samplers import DPMpp2M, generate

STEPS, BATCH, OPEN_PROMPTS, PER_PROMPT = 20, 200, 20, 20
PROMPT_SEED = 1000  # no prompt of the pictures that training draws for its grids
KINDS = {  # column: split and wording
    "seen": ("validation", "plain"),
    "unseen": ("test", "plain"),
    "order": ("validation", "order"),
    "synonyms": ("validation", "synonyms"),
}
Guide = Callable[[Denoiser], Denoiser]


def guidances(scales: Sequence[float]) -> Iterator[tuple[str, Guide]]:
    """The names and constructors of what is compared."""
    for scale in scales:
        yield f"cfg {scale:g}", partial(ClassifierFree, scale=scale)
        if scale > 1:
            yield f"apg {scale:g}", partial(ClassifierFree, scale=scale, rule=APG())
            yield f"cfg {scale:g}, interval (0.3, 5]", partial(ClassifierFree, scale=scale, interval=(0.3, 5.0))


def draw(guided: Denoiser, texts: Sequence[str]) -> Tensor:
    """uint8 [N, 3, H, W], one picture per text."""
    assert guided.conditioning is not None and guided.shape is not None
    y = guided.conditioning.read(texts)
    assert isinstance(y, RowCondition)
    batches = generate(guided, DPMpp2M(STEPS), range(len(texts)), y, guided.shape, BATCH)
    return quantize(torch.cat([batch.float() for batch in batches]))


def measure(model: Denoiser, guide: Guide, n: int) -> dict[str, float]:
    """The columns of a row of the table."""
    guided, row = guide(model), {}
    for name, (split, wording) in KINDS.items():
        texts = [text for text, _ in prompts(split, PROMPT_SEED, n, wording)]
        row[name] = judge_pictures(draw(guided, texts), texts).all_right.double().mean().item()
    texts = [text for text, _ in prompts("validation", PROMPT_SEED, OPEN_PROMPTS, "trained", complete=False)]
    repeated = [text for text in texts for _ in range(PER_PROMPT)]
    x = draw(guided, repeated)
    figures = diversity_figures(x, judge_pictures(x, repeated))
    return row | {name: figures[name].value for name in ("diversity", "pixel_diversity") if name in figures}


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 2, 3, 5])
    arguments = parser.parse_args(words)
    rows: dict[str, list[dict[str, float]]] = {}
    for run in arguments.runs:
        model = diffguide.load(run)
        for name, guide in guidances(arguments.scales):
            rows.setdefault(name, []).append(measure(model, guide, arguments.n))
            show(f"{run} {name}", rows[name][-1])
    for name, found in rows.items():
        show(f"mean {name}", {key: sum(row[key] for row in found) / len(found) for key in found[0]})


def show(name: str, row: dict[str, float]) -> None:
    print(f"{name:64}", *(f"{key} {value:.3f}" for key, value in row.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
