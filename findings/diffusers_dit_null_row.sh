#!/usr/bin/env bash
# diffusers 0.42.1: DiTPipeline guides every network against row 1000 of its class table, whatever row means no class.
#
# Behaviour: with guidance_scale above 1 the second half of the batch gets the label 1000. A network with 10 classes, whose row
#   for no class is 10, raises IndexError. One with 2000 classes, whose row for no class is 2000, is guided away from its class
#   1000, without an error or a warning.
# Surprise: the network states its classes (num_embeds_ada_norm) and makes one row more, the last, for no class
#   (LabelEmbedding drops labels to row num_classes). from_pretrained and save_pretrained keep the number; the pipeline's class
#   names come from its folder too. Only guidance holds the number of ImageNet.
# Source: Peebles & Xie, "Scalable Diffusion Models with Transformers", 2022, arXiv 2212.09748, section 3: guidance extrapolates
#   from the learned null embedding. pipelines/dit/pipeline_dit.py, DiTPipeline.__call__; models/embeddings.py, LabelEmbedding.
# Output seen:
#   classes   row for no class   guidance asks for
#        10                 10   IndexError
#      1000               1000   1000
#      2000               2000   1000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import diffusers
import torch


def guided_row(classes):
    """The label of the unguided half in one step of guided sampling with a small random network."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=classes,
    )
    null_row = network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings - 1
    vae = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    pipeline = diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    try:
        pipeline([1], guidance_scale=4.0, num_inference_steps=1, output_type="pt")
    except IndexError:
        return null_row, "IndexError"
    assert seen[0][0] == 1
    return null_row, seen[0][1]


found = {}
print("classes   row for no class   guidance asks for")
for classes in (10, 1000, 2000):
    null_row, asked = guided_row(classes)
    found[classes] = null_row, asked
    print(f"{classes:7} {null_row:18}   {asked}")
print("expected: guidance asks for the row for no class")
if found != {10: (10, "IndexError"), 1000: (1000, 1000), 2000: (2000, 1000)}:
    sys.exit("diffusers behaves differently now")
PYTHON
