"""Strips of a clip's latents, decoded one by one: what diffusers' own tiles give, whatever the shape."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from radial.video.strips import Strips


def autoencoder(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "wan":
        vae = diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        )  # fmt: skip
    else:
        vae = diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        )  # fmt: skip
    return vae.eval()


@pytest.mark.parametrize("kind", ["wan", "hunyuan"])
@pytest.mark.parametrize(("height", "width"), [(6, 40), (36, 5)])
def test_two_strips_are_two_tiles_of_diffusers(kind: str, height: int, width: int) -> None:
    vae = autoencoder(kind)
    # Small ones: what leaves the range of colours Wan's autoencoder cuts off, before tiles are blended or after.
    latents = torch.randn(1, 4, 3, height, width, generator=torch.Generator().manual_seed(1)) / 2
    strips = Strips.of(latents, 2)
    long = max(height, width)
    assert (strips.starts, strips.dim) == ((0, long // 2), -1 if width > height else -2)
    with torch.inference_mode():
        parts = [vae.decode(strips.cut(latents, index), return_dict=False)[0] for index in range(2)]
        got = strips.join(parts)
        # Tiles of the same size: the first reaches as far into the second, which reaches to the end.
        across = (8 * (long // 2 + 8), 8 * (long // 2))
        along = (512, 512)
        (min_height, stride_height), (min_width, stride_width) = (across, along) if height > width else (along, across)
        vae.enable_tiling(
            tile_sample_min_height=min_height, tile_sample_min_width=min_width,
            tile_sample_stride_height=stride_height, tile_sample_stride_width=stride_width,
        )  # fmt: skip
        wanted = vae.decode(latents, return_dict=False)[0]
        whole = autoencoder(kind).decode(latents, return_dict=False)[0]
    assert got.shape == whole.shape
    assert torch.allclose(got, wanted, atol=1e-5)
    assert not torch.equal(got, whole)


def test_strips_of_odd_sizes_cover_all_of_it() -> None:
    latents = torch.arange(53.0).view(1, 1, 1, 1, 53).expand(1, 2, 3, 4, 53)
    for count in (1, 2, 3, 8):
        strips = Strips.of(latents, count)
        assert len(strips.starts) == min(count, 3)
        # As if a latent became two pixels.
        parts = [strips.cut(latents, i).repeat_interleave(2, -1).clone() for i in range(len(strips.starts))]
        assert torch.allclose(strips.join(parts), latents.repeat_interleave(2, -1))
    assert Strips.of(torch.zeros(1, 4, 3, 15, 15), 8).starts == (0,)
