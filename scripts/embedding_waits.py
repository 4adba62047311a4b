"""How long training waits for the encodings of its texts, which a frozen encoder made once.

    python scripts/embedding_waits.py [--steps 10] [--batch 64] [--examples 256] [--length 77] [--width 768] [--device cpu]

A UNet at 16 x 16 trains on dataset=shapes with condition=clip_text: a CLIP text encoder of random weights, whose encodings have
the length and width of Stable Diffusion's. The encodings are kept in memory (condition.memory, the default), and then read from
their shards (condition.memory=0). Seconds are CPU seconds of one thread, which other processes do not lengthen; with --wall
those of the clock, and on a GPU those of its events. Bar: no call of the encoder, below 1 % of a step. Takes a minute.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.clocks import Clock

from diffguide.backbones import UNet
from diffguide.conditions import ClipText
from diffguide.conditions.encoders import TextEncoder
from diffguide.conditions.examples import ConditionedData
from diffguide.datasets import Shapes
from diffguide.objectives import Denoising
from diffguide.schedules import Cosine
from diffguide.training.batches import Batches

BAR = 0.01  # of a step
WARM_UP = 2  # steps that are not counted
STORAGES = {"memory": 2e9, "shards": 0.0}


class OneProcess(NamedTuple):
    """What `Batches` needs of an engine."""

    device: torch.device
    global_rank: int = 0
    world_size: int = 1


def write_encoder(folder: Path, length: int, width: int) -> Path:
    """A CLIP text encoder of one layer with random weights, whose tokens are letters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": tokens[-1]}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=64, projection_dim=width, num_hidden_layers=1,
        num_attention_heads=max(1, width // 64), max_position_embeddings=length, bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def count_calls(calls: list[int]) -> Callable[[], None]:
    """Notes the texts of every call of an encoder from now on; the function that it returns ends it."""
    encode = TextEncoder.encode

    def noted(self: TextEncoder, texts: Any, *device: Any) -> Any:
        calls.append(len(texts))
        return encode(self, texts, *device)

    TextEncoder.encode = noted  # type: ignore[method-assign]
    return partial(setattr, TextEncoder, "encode", encode)


def measure(
    folder: Path, memory: float, steps: int, batch: int, data: Shapes, length: int, clock: Clock
) -> dict[str, float]:
    """Seconds of a step, seconds of it for encodings, and calls of the encoder while it trains."""
    device = clock.device
    text = ClipText(str(folder / "clip"), length=length, cache=str(folder / "texts"), memory=memory)
    torch.manual_seed(0)
    network = UNet(3, size=16, channels=64, multipliers=(1, 2, 2), attention=(8,), head_channels=64, conditioning=text)
    objective = Denoising(network, Cosine(), p_uncond=0.1).to(device)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    examples = ConditionedData(data, objective.model).train
    batches = iter(Batches(examples, 0, OneProcess(device), batch, batch))
    table, spent, calls = examples.table, list[float](), list[int]()
    assert table is not None

    def timed(*given: Any) -> Any:
        kept: list[Any] = []
        spent.append(clock(lambda: kept.append(table(*given))))
        return kept[0]

    timed.draws = table.draws  # type: ignore[attr-defined]
    examples.table = timed  # type: ignore[assignment]

    def step() -> None:
        x, y, rng = next(batches)
        objective(x, y, rng).per_example.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    end = count_calls(calls)
    clock(step, WARM_UP)
    spent.clear()
    seconds = clock(step, steps)
    end()
    return {"step": seconds, "waits": sum(spent) / steps, "share": sum(spent) / steps / seconds, "calls": len(calls)}


def main(words: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"steps": 10, "batch": 64, "examples": 256, "length": 77, "width": 768}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    clock = Clock(torch.device(options.device), options.wall)
    data = Shapes(train=options.examples, validation=1, test=1)
    with tempfile.TemporaryDirectory() as place:
        write_encoder(Path(place) / "clip", options.length, options.width)
        found = {
            name: measure(Path(place), memory, options.steps, options.batch, data, options.length, clock)
            for name, memory in STORAGES.items()
        }
    print("| encodings in | ms per step | ms for encodings | share | calls of the encoder |\n|---|---|---|---|---|")
    for name, row in found.items():
        print(
            f"| {name} | {1e3 * row['step']:.4g} | {1e3 * row['waits']:.3g} | {row['share']:.3%} | {row['calls']:.0f} |"
        )
    reached = all(row["share"] < BAR and not row["calls"] for row in found.values())
    print(f"\nbar: no call, below {BAR:.0%}: {'reached' if reached else 'missed'}")
    return found


if __name__ == "__main__":
    main()
