"""Images that stay on the device as uint8: batches cropped, mirrored and normalised there, without a loader.

Existing projects decode and augment on the host, image by image; this is their best case. View ids are those of
`gkd_jax.data.views`: `(dy (2 pad + 1) + dx) 2 + mirrored`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 4
VIEWS = (2 * PAD + 1) ** 2 * 2

# Of CIFAR-100, as shares of full brightness
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


def pad_images(images: Tensor) -> Tensor:
    """Surrounds uint8 images [n h w c] by `PAD` black pixels on each side."""
    return F.pad(images, (0, 0, PAD, PAD, PAD, PAD))


def crop_flip(padded: Tensor, index: Tensor, view: Tensor, channels_last: bool) -> Tensor:
    """Gathers the views `view` [b] of the examples `index` [b] in one indexing operation.

    Args:
      padded: from `pad_images`.
      index: places in it.
      view: ids below `VIEWS`.
      channels_last: the memory format of the result; the index is laid out for it, since a copy would cost more.

    Returns:
      uint8 [b c h w].
    """
    height, width, channels = padded.shape[1] - 2 * PAD, padded.shape[2] - 2 * PAD, padded.shape[3]
    corner, mirrored = view // 2, view % 2 == 1
    dy, dx = corner // (2 * PAD + 1), corner % (2 * PAD + 1)
    rows = dy[:, None] + torch.arange(height, device=view.device)
    ahead = torch.arange(width, device=view.device)
    columns = dx[:, None] + torch.where(mirrored[:, None], width - 1 - ahead, ahead)
    if channels_last:
        return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    channel = torch.arange(channels, device=view.device)[:, None, None]
    return padded[index[:, None, None, None], rows[:, None, :, None], columns[:, None, None, :], channel]


def normalise(images: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns `shift + scale · images` in float32, with `shift` and `scale` [c 1 1] from `normalisation`."""
    return torch.addcmul(shift, images.float(), scale)


def normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns what maps pixels 0 to 255 to zero mean and unit variance: (shift, scale), [c 1 1] each."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return -mean / std, 1 / (255 * std)
