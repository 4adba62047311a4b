"""The networks of EDM2 (arXiv 2312.02696) as functions of a state dict with the published names; see `published_edm`."""

import math

import torch
from published_edm import Draw, Stored, edm_denoise, resample, silu
from torch.nn import functional

__all__ = ["edm2_precond", "edm2_tensors"]


def magnitude(w, dims):
    """Root mean square over the dimensions."""
    return w.square().mean(dims, keepdim=True).sqrt()


def mp_conv(get, name, x, outputs, kernel, gain=1.0):
    shape = (outputs, x.shape[1], *kernel)
    w = get(f"{name}.weight", *shape, scale=1.0)
    dims = tuple(range(1, w.ndim))
    w = w / (1e-4 + magnitude(w, dims)) * (gain / math.sqrt(math.prod(shape[1:])))
    return functional.conv2d(x, w, padding=kernel[0] // 2) if kernel else x @ w.T


def mp_silu(x):
    return silu(x) / 0.596


def mp_sum(a, b, t):
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a, b, t):
    c = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    return torch.cat([c * (1 - t) / math.sqrt(a.shape[1]) * a, c * t / math.sqrt(b.shape[1]) * b], 1)


def pixel_norm(x):
    return x / (1e-4 + magnitude(x, 1))


def mp_attention(get, name, x, heads):
    batch, channels = x.shape[:2]
    qkv, out = mp_conv(get, f"{name}.attn_qkv", x, 3 * channels, (1, 1)), []
    for part in qkv.reshape(batch, heads, channels // heads * 3, -1).unbind(1):
        q, k, v = (pixel_norm(part[:, i::3]) for i in range(3))
        weights = (q.transpose(1, 2) @ k / math.sqrt(channels // heads)).softmax(2)
        out.append(v @ weights.transpose(1, 2))
    return mp_conv(get, f"{name}.attn_proj", torch.cat(out, 1).reshape(x.shape), channels, (1, 1))


def edm2_block(get, name, x, emb, outputs, how, attend, encoder, o):
    x = resample(x, how, o.get("resample_filter", (1, 1)))
    inputs = x.shape[1]
    if encoder:
        x = pixel_norm(mp_conv(get, f"{name}.conv_skip", x, outputs, (1, 1)) if inputs != outputs else x)
    y = mp_conv(get, f"{name}.conv_res0", mp_silu(x), outputs, (3, 3))
    gain = get(f"{name}.emb_gain", scale=0.5)
    y = mp_silu(y * (1 + mp_conv(get, f"{name}.emb_linear", emb, outputs, (), gain))[:, :, None, None])
    y = mp_conv(get, f"{name}.conv_res1", y, outputs, (3, 3))
    if not encoder and inputs != outputs:
        x = mp_conv(get, f"{name}.conv_skip", x, outputs, (1, 1))
    x = mp_sum(x, y, o.get("res_balance", 0.3))
    if attend:
        heads = outputs // o.get("channels_per_head", 64)
        x = mp_sum(x, mp_attention(get, name, x, heads), o.get("attn_balance", 0.3))
    clip = o.get("clip_act", 256)
    return x if clip is None else x.clamp(-clip, clip)


def edm2_unet(get, x, level, labels, o):
    widths = [o["model_channels"] * mult for mult in o["channel_mult"]]
    noise_mult, emb_mult = o.get("channel_mult_noise"), o.get("channel_mult_emb")
    noise = widths[0] if noise_mult is None else o["model_channels"] * noise_mult
    cemb = max(widths) if emb_mult is None else o["model_channels"] * emb_mult
    freqs = get("unet.emb_fourier.freqs", noise, scale=2 * math.pi)
    phases = get("unet.emb_fourier.phases", noise, scale=2.0)
    emb = mp_conv(get, "unet.emb_noise", math.sqrt(2) * torch.cos(level[:, None] * freqs + phases), cemb, ())
    if o["label_dim"]:
        label = mp_conv(get, "unet.emb_label", labels * math.sqrt(o["label_dim"]), cemb, ())
        emb = mp_sum(emb, label, o.get("label_balance", 0.5))
    emb = mp_silu(emb)
    x, skips = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
    sides = [o["img_resolution"] >> i for i in range(len(widths))]
    for i, (side, width) in enumerate(zip(sides, widths)):
        name = f"unet.enc.{side}x{side}"
        if i == 0:
            x = mp_conv(get, f"{name}_conv", x, width, (3, 3))
        else:
            x = edm2_block(get, f"{name}_down", x, emb, x.shape[1], "down", False, True, o)
        skips.append(x)
        for j in range(o["num_blocks"]):
            attend = side in o["attn_resolutions"]
            x = edm2_block(get, f"{name}_block{j}", x, emb, width, None, attend, True, o)
            skips.append(x)
    for i, (side, width) in reversed(list(enumerate(zip(sides, widths)))):
        name = f"unet.dec.{side}x{side}"
        if i == len(sides) - 1:
            x = edm2_block(get, f"{name}_in0", x, emb, x.shape[1], None, True, False, o)
            x = edm2_block(get, f"{name}_in1", x, emb, x.shape[1], None, False, False, o)
        else:
            x = edm2_block(get, f"{name}_up", x, emb, x.shape[1], "up", False, False, o)
        for j in range(o["num_blocks"] + 1):
            x, attend = mp_cat(x, skips.pop(), o.get("concat_balance", 0.5)), side in o["attn_resolutions"]
            x = edm2_block(get, f"{name}_block{j}", x, emb, width, None, attend, False, o)
    return mp_conv(get, "unet.out_conv", x, o["img_channels"], (3, 3), get("unet.out_gain", scale=0.0, mean=0.8))


def edm2_precond(tensors, x, sigma, y, o):
    return edm_denoise(Stored(tensors), x, sigma, y, o, edm2_unet)


def edm2_tensors(o, seed=0):
    """Random tensors with the published names and shapes; those of the uncertainty too."""
    get, side = Draw(seed), o["img_resolution"]
    x, y = torch.zeros(1, o["img_channels"], side, side), torch.zeros(1, dtype=torch.long)
    edm_denoise(get, x, torch.ones(1), y, o, edm2_unet)
    get("logvar_fourier.freqs", 128), get("logvar_fourier.phases", 128), get("logvar_linear.weight", 1, 128)
    return get.tensors
