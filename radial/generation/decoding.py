"""Latents into frames whatever it takes: whole, in tiles, on the CPU."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from radial.loading.memory import decode_in_tiles
from radial.loading.tiny_decoder import TinyDecoder


@contextlib.contextmanager
def decode_with_fallback(vae: Any, on_begin: Callable[[], None], on_note: Callable[[str], None]) -> Iterator[None]:
    """While the context lasts, an autoencoder that runs out of memory tries again in tiles, and then on the CPU.

    Args:
        on_begin: told that decoding begins, also where a clip was ended before its last step.
        on_note: told what was done instead, and what it means.
    """
    if vae is None:  # pipelines that decode with something else
        yield
        return
    stock, device = vae.decode, _device_of(vae)
    tiled = bool(getattr(vae, "use_tiling", False))

    @functools.wraps(stock)
    def decode(latents: Tensor, *args: Any, **options: Any) -> Any:
        on_begin()
        try:
            return stock(latents, *args, **options)
        except torch.OutOfMemoryError:
            _free(vae)
        if not tiled and decode_in_tiles(vae):
            on_note("memory ran out while decoding: decoded in tiles instead, whose edges are blended")
            try:
                return stock(latents, *args, **options)
            except torch.OutOfMemoryError:
                _free(vae)
        on_note("memory ran out while decoding: decoded on the CPU instead, which takes minutes")
        hook = vae.__dict__.pop("_hf_hook", None)  # it would bring the autoencoder back to the GPU
        try:
            vae.to("cpu", torch.float32)  # in 16 bits the CPU is slow, or cannot
            return stock(latents.to("cpu", torch.float32), *args, **options)
        finally:
            if hook is not None:
                vae._hf_hook = hook

    dtype = vae.dtype
    try:
        with decoding_by(vae, decode):
            yield
    finally:
        if vae.dtype is not dtype or _device_of(vae) != device:
            vae.to(device, dtype)
        if not tiled and getattr(vae, "use_tiling", False):
            vae.disable_tiling()


@contextlib.contextmanager
def decoded_by(vae: Any, decoder: TinyDecoder, on_begin: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, a tiny decoder makes the frames in an autoencoder's place, and the looks on the way.

    Args:
        on_begin: told that decoding begins.
    """
    from diffusers.models.autoencoders.vae import DecoderOutput

    @functools.wraps(vae.decode)
    def decode(latents: Tensor, *args: Any, return_dict: bool = True, **options: Any) -> Any:
        on_begin()
        frames = decode_tiny(vae, decoder, latents)
        return DecoderOutput(frames) if return_dict else (frames,)

    vars(vae)["tiny_decoder"] = decoder  # as an attribute it would become a part of the autoencoder
    try:
        with decoding_by(vae, decode):
            yield
    finally:
        del vars(vae)["tiny_decoder"]


def decode_tiny(vae: Any, decoder: TinyDecoder, latents: Tensor) -> Tensor:
    """Frames of latents as the autoencoder takes them, by a tiny decoder, which takes them as they were made."""
    made = rescale(vae, latents).to(next(decoder.parameters()).device)
    return torch.stack([decoder.decode(one) for one in made]).to(latents)


def unscale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the autoencoder takes them, of those that transformers make."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1, 1)
        return latents * latents.new_tensor(std).view(shape) + latents.new_tensor(mean).view(shape)
    factor: float = vae.config.get("scaling_factor") or 1.0
    return latents / factor


def rescale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as transformers make them, of those that the autoencoder takes."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1, 1)
        return (latents - latents.new_tensor(mean).view(shape)) / latents.new_tensor(std).view(shape)
    factor: float = vae.config.get("scaling_factor") or 1.0
    return latents * factor


@contextlib.contextmanager
def decoding_by(vae: Any, decode: Callable[..., Any]) -> Iterator[None]:
    """While the context lasts, an autoencoder decodes by another function than its own."""
    stock, own = vae.decode, "decode" in vars(vae)
    vae.decode = decode
    try:
        yield
    finally:
        if own:
            vae.decode = stock
        else:
            del vae.decode


def _device_of(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device


def _free(vae: Any) -> None:
    """What a decoding that broke off still holds."""
    if hasattr(vae, "clear_cache"):
        vae.clear_cache()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
