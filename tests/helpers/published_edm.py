"""The networks of EDM (arXiv 2206.00364) as functions of a state dict with the published names.

Written from the equations and tables of the papers, one plain function of torch per layer, slow and without modules, so
that the networks of the package are compared with something that shares no code with them. Convolutions that resample are
written by their filter taps.
"""

import math

import torch
from torch.nn import functional

__all__ = ["Draw", "Stored", "edm_denoise", "edm_precond", "edm_tensors", "resample", "silu"]


class Draw:
    """A state dict that is drawn while it is asked for: every published name with its shape."""

    def __init__(self, seed):
        self.rng, self.tensors = torch.Generator().manual_seed(seed), {}

    def __call__(self, name, *shape, scale=None, mean=0.0):
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        scale = (fan**-0.5 if len(shape) > 1 else 0.3) if scale is None else scale
        if name not in self.tensors:
            self.tensors[name] = mean + scale * torch.randn(shape, generator=self.rng)
        return self.tensors[name].double()


class Stored:
    """The tensors of a finished state dict, asked for by name."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __call__(self, name, *shape, **_):
        assert tuple(self.tensors[name].shape) == shape, name
        return self.tensors[name].double()


def taps(filter_):
    total = sum(filter_)
    return [value / total for value in filter_]


def shrink(x, filter_, pad):
    """y[i, j] = sum over a, b of f_a f_b x[2 i + a - pad, 2 j + b - pad], 0 outside."""
    f = taps(filter_)
    side = (x.shape[-1] + 2 * pad - len(f)) // 2 + 1
    x = functional.pad(x, (pad,) * 4)
    rows = sum(f[a] * x[:, :, a : a + 2 * side - 1 : 2] for a in range(len(f)))
    return sum(f[b] * rows[:, :, :, b : b + 2 * side - 1 : 2] for b in range(len(f)))


def grow(x, filter_, pad):
    """Zeros between the pixels, then the filter at four times its weight."""
    f, (batch, channels, side, _) = taps(filter_), x.shape
    out = x.new_zeros(batch, channels, 2 * side + len(f), 2 * side + len(f))
    for a in range(len(f)):
        for b in range(len(f)):
            out[:, :, a : a + 2 * side : 2, b : b + 2 * side : 2] += 4 * f[a] * f[b] * x
    return out[:, :, pad : pad + 2 * side, pad : pad + 2 * side]


def resample(x, how, filter_):
    pad = (len(filter_) - 1) // 2
    return {"down": shrink, "up": grow}[how](x, filter_, pad) if how else x


def silu(x):
    return x / (1 + (-x).exp())


def group_norm(get, name, x, eps):
    channels = x.shape[1]
    h = x.reshape(len(x), min(32, channels // 4), -1)
    h = (h - h.mean(2, keepdim=True)) / (h.var(2, unbiased=False, keepdim=True) + eps).sqrt()
    weight, bias = get(f"{name}.weight", channels, scale=0.2, mean=1.0), get(f"{name}.bias", channels)
    return h.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def conv(get, name, x, outputs, kernel, how=None, filter_=(1, 1)):
    weight = get(f"{name}.weight", outputs, x.shape[1], kernel, kernel)
    h = functional.conv2d(resample(x, how, filter_), weight, padding=kernel // 2)
    return h + get(f"{name}.bias", outputs)[:, None, None]


def linear(get, name, x, outputs, bias=True):
    h = x @ get(f"{name}.weight", outputs, x.shape[1]).T
    return h + get(f"{name}.bias", outputs) if bias else h


def edm_attention(get, name, x, heads, eps):
    """Channels of the 1 x 1 convolution in the order (head, channel of the head, one of q k v)."""
    batch, channels = x.shape[:2]
    qkv = conv(get, f"{name}.qkv", group_norm(get, f"{name}.norm2", x, eps), 3 * channels, 1)
    out = []
    for part in qkv.reshape(batch, heads, channels // heads * 3, -1).unbind(1):
        q, k, v = part[:, 0::3], part[:, 1::3], part[:, 2::3]  # [B, d, N]
        weights = (q.transpose(1, 2) @ k / math.sqrt(channels // heads)).softmax(2)
        out.append(v @ weights.transpose(1, 2))
    return conv(get, f"{name}.proj", torch.cat(out, 1).reshape(x.shape), channels, 1)


def edm_block(get, name, x, emb, outputs, how, attend, net):
    eps, inputs = net["eps"], x.shape[1]
    h = conv(get, f"{name}.conv0", silu(group_norm(get, f"{name}.norm0", x, eps)), outputs, 3, how, net["filter"])
    if net["adaptive"]:
        scale, shift = linear(get, f"{name}.affine", emb, 2 * outputs)[:, :, None, None].chunk(2, 1)
        h = group_norm(get, f"{name}.norm1", h, eps) * (1 + scale) + shift
    else:
        h = group_norm(get, f"{name}.norm1", h + linear(get, f"{name}.affine", emb, outputs)[:, :, None, None], eps)
    h = conv(get, f"{name}.conv1", silu(h), outputs, 3)
    if inputs != outputs or (how and net["project"]):
        x = conv(get, f"{name}.skip", x, outputs, 1, how, net["filter"])
    else:
        x = resample(x, how, net["filter"])
    x = (x + h) * net["scale"]
    if attend:
        x = (x + edm_attention(get, name, x, net["heads"](outputs), eps)) * net["scale"]
    return x


def positional(level, width, endpoint):
    half = width // 2
    angles = level[:, None] * 10000.0 ** (-torch.arange(half).double() / (half - endpoint))
    return angles.cos(), angles.sin()


def song_embedding(get, level, labels, o):
    base = o["model_channels"]
    width, emb_width = base * o["channel_mult_noise"], base * o["channel_mult_emb"]
    if o["embedding_type"] == "positional":
        cos, sin = positional(level, width, 1)
    else:
        angles = 2 * math.pi * level[:, None] * get("model.map_noise.freqs", width // 2, scale=16.0)
        cos, sin = angles.cos(), angles.sin()
    emb = torch.cat([sin, cos], 1)
    if o["label_dim"]:
        emb = emb + linear(get, "model.map_label", labels * math.sqrt(o["label_dim"]), width)
    if o["augment_dim"]:
        get("model.map_augment.weight", width, o["augment_dim"])
    return silu(linear(get, "model.map_layer1", silu(linear(get, "model.map_layer0", emb, emb_width)), emb_width))


def adm_embedding(get, level, labels, o):
    base = o["model_channels"]
    width = base * o["channel_mult_emb"]
    if o["augment_dim"]:
        get("model.map_augment.weight", base, o["augment_dim"])
    emb = silu(linear(get, "model.map_layer0", torch.cat(positional(level, base, 0), 1), width))
    emb = linear(get, "model.map_layer1", emb, width)
    if o["label_dim"]:
        emb = emb + linear(get, "model.map_label", labels, width, bias=False)
    return silu(emb)


def song_unet(get, x, level, labels, o):
    net = {"eps": 1e-6, "scale": math.sqrt(0.5), "adaptive": False, "project": True, "heads": lambda _: 1}
    net["filter"] = filter_ = o["resample_filter"]
    emb = song_embedding(get, level, labels, o)
    aux, skips, sides = x, [], [o["img_resolution"] >> i for i in range(len(o["channel_mult"]))]
    for i, (side, mult) in enumerate(zip(sides, o["channel_mult"])):
        name = f"model.enc.{side}x{side}"
        if i == 0:
            x = conv(get, f"{name}_conv", x, o["model_channels"], 3)
            skips.append(x)
        else:
            x = edm_block(get, f"{name}_down", x, emb, x.shape[1], "down", False, net)
            if o["encoder_type"] == "skip":
                aux = resample(aux, "down", filter_)
                x = x + conv(get, f"{name}_aux_skip", aux, x.shape[1], 1)
            elif o["encoder_type"] == "residual":
                weight = get(f"{name}_aux_residual.weight", x.shape[1], aux.shape[1], 3, 3)
                wide = functional.conv2d(aux, weight, padding=1 + (len(filter_) - 1) // 2)
                bias = get(f"{name}_aux_residual.bias", x.shape[1])[:, None, None]
                x = aux = (x + shrink(wide, filter_, 0) + bias) / math.sqrt(2)
            skips.append(x)
        for j in range(o["num_blocks"]):
            attend = side in o["attn_resolutions"]
            x = edm_block(get, f"{name}_block{j}", x, emb, o["model_channels"] * mult, None, attend, net)
            skips.append(x)
    out = None
    for i, (side, mult) in reversed(list(enumerate(zip(sides, o["channel_mult"])))):
        name, last = f"model.dec.{side}x{side}", i == len(sides) - 1
        if last:
            x = edm_block(get, f"{name}_in0", x, emb, x.shape[1], None, True, net)
            x = edm_block(get, f"{name}_in1", x, emb, x.shape[1], None, False, net)
        else:
            x = edm_block(get, f"{name}_up", x, emb, x.shape[1], "up", False, net)
        for j in range(o["num_blocks"] + 1):
            attend = j == o["num_blocks"] and side in o["attn_resolutions"]
            x = torch.cat([x, skips.pop()], 1)
            x = edm_block(get, f"{name}_block{j}", x, emb, o["model_channels"] * mult, None, attend, net)
        if o["decoder_type"] == "skip" or i == 0:
            out = None if out is None else grow(out, filter_, (len(filter_) - 1) // 2)
            h = silu(group_norm(get, f"{name}_aux_norm", x, 1e-6))
            h = conv(get, f"{name}_aux_conv", h, o["img_channels"], 3)
            out = h if out is None else out + h
    return out


def adm_unet(get, x, level, labels, o):
    net = {"eps": 1e-5, "scale": 1.0, "adaptive": True, "project": False, "heads": lambda width: width // 64}
    net["filter"] = (1, 1)
    emb = adm_embedding(get, level, labels, o)
    skips, sides = [], [o["img_resolution"] >> i for i in range(len(o["channel_mult"]))]
    for i, (side, mult) in enumerate(zip(sides, o["channel_mult"])):
        name, width = f"model.enc.{side}x{side}", o["model_channels"] * mult
        if i == 0:
            x = conv(get, f"{name}_conv", x, width, 3)
        else:
            x = edm_block(get, f"{name}_down", x, emb, x.shape[1], "down", False, net)
        skips.append(x)
        for j in range(o["num_blocks"]):
            x = edm_block(get, f"{name}_block{j}", x, emb, width, None, side in o["attn_resolutions"], net)
            skips.append(x)
    for i, (side, mult) in reversed(list(enumerate(zip(sides, o["channel_mult"])))):
        name, last = f"model.dec.{side}x{side}", i == len(sides) - 1
        if last:
            x = edm_block(get, f"{name}_in0", x, emb, x.shape[1], None, True, net)
            x = edm_block(get, f"{name}_in1", x, emb, x.shape[1], None, False, net)
        else:
            x = edm_block(get, f"{name}_up", x, emb, x.shape[1], "up", False, net)
        for j in range(o["num_blocks"] + 1):
            x, attend = torch.cat([x, skips.pop()], 1), side in o["attn_resolutions"]
            x = edm_block(get, f"{name}_block{j}", x, emb, o["model_channels"] * mult, None, attend, net)
    return conv(get, "model.out_conv", silu(group_norm(get, "model.out_norm", x, 1e-5)), o["img_channels"], 3)


EDM_NETWORKS = {"SongUNet": song_unet, "DhariwalUNet": adm_unet}


def one_hot(y, classes):
    """Rows of 0 where y is -1."""
    return (y[:, None] == torch.arange(classes)).double()


def edm_denoise(get, x, sigma, y, o, network):
    """D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4, label); x [B, C, H, W], sigma [B], y [B]."""
    x, sigma, d = x.double(), sigma.double(), o.get("sigma_data", 0.5)
    s = sigma[:, None, None, None]
    total = s**2 + d**2
    f = network(get, x / total.sqrt(), sigma.log() / 4, one_hot(y, o["label_dim"]), o)
    return d**2 / total * x + s * d / total.sqrt() * f


def edm_precond(tensors, x, sigma, y, o):
    return edm_denoise(Stored(tensors), x, sigma, y, o, EDM_NETWORKS[o["model_type"]])


def edm_tensors(o, seed=0):
    """Random tensors with the published names and shapes."""
    get, side = Draw(seed), o["img_resolution"]
    x, y = torch.zeros(1, o["img_channels"], side, side), torch.zeros(1, dtype=torch.long)
    edm_denoise(get, x, torch.ones(1), y, o, EDM_NETWORKS[o["model_type"]])
    filter_ = torch.tensor(taps(o.get("resample_filter", (1, 1))))
    names = [name.removesuffix(".weight") for name in get.tensors if name.endswith(("conv0.weight", "skip.weight"))]
    for name in names:  # the published files hold the filters too
        if name.split(".")[2].endswith(("_down", "_up")):
            get.tensors[f"{name}.resample_filter"] = torch.outer(filter_, filter_)[None, None]
    return get.tensors
