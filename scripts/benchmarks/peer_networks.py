"""U-Nets of other libraries with the loss, the optimiser and the average of weights of their own training scripts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.1  # as in diffguide's networks


@dataclass
class PeerNetwork:
    """
    Arguments:
        network: the network.
        loss: (x [B, C, H, W] in [-1, 1], y [B]) -> mean loss.
        optimizer: of its parameters.
        average: updates the average of its weights.
    """

    network: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    average: Callable[[], object]


def build_diffusers(widths: Sequence[int], channels: int, side: int, classes: int, device: torch.device) -> PeerNetwork:
    """UNet2DModel with attention at the second resolution, as examples/unconditional_image_generation trains it."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    attends = [level == 1 for level in range(len(widths))]
    network = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=tuple(widths),
        dropout=DROPOUT,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        num_class_embeds=classes + 1,
    ).to(device)
    schedule = DDPMScheduler(1000)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=device)
        predicted = network(schedule.add_noise(x, noise, t), t, y).sample
        return F.mse_loss(predicted.float(), noise)

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    return PeerNetwork(network, loss, optimizer, lambda: average.step(network.parameters()))


def build_denoising_diffusion_pytorch(
    width: int, multipliers: Sequence[int], channels: int, side: int, classes: int, device: torch.device
) -> PeerNetwork:
    """denoising-diffusion-pytorch's Unet, which has no classes, as its Trainer trains it."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    network = Unet(dim=width, dim_mults=tuple(multipliers), channels=channels, dropout=DROPOUT)
    diffusion = GaussianDiffusion(network, image_size=side, timesteps=1000).to(device)
    average = EMA(diffusion, beta=0.995, update_every=10).to(device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    return PeerNetwork(network, lambda x, y: diffusion((x + 1) / 2), optimizer, average.update)


class ConditionedAzula(nn.Module):
    """azula's UNet, modulated by an embedding of time and class."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int, blocks: int = 3):
        from azula.nn.unet import UNet

        super().__init__()
        features = max(widths[-1], 128)
        self.unet = UNet(
            channels,
            channels,
            hid_channels=tuple(widths),
            hid_blocks=(blocks,) * len(widths),
            mod_features=features,
            norm="group",
            dropout=DROPOUT,
        )
        self.label, self.time = nn.Embedding(classes + 1, features), nn.Linear(features, features)
        self.register_buffer("frequencies", torch.linspace(0, 7, features // 2).exp())

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return self.unet(x, self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(y))


def build_azula(widths: Sequence[int], channels: int, side: int, classes: int, device: torch.device) -> PeerNetwork:
    """azula's UNet, without attention, on the straight path from data to noise; azula has no training script."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    network = ConditionedAzula(widths, channels, classes).to(device)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        t, noise = torch.rand(len(x), device=device), torch.randn_like(x)
        share = t.view(-1, *[1] * (x.ndim - 1))
        return F.mse_loss(network(torch.lerp(x, noise, share), t, y).float(), noise - x)

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    return PeerNetwork(network, loss, optimizer, lambda: average.update_parameters(network))
