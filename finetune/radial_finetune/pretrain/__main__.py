"""``python -m radial_finetune.pretrain --out FOLDER``: the bundled model from nothing, resumable at any point.

The folder receives ``tiny/``, a pipeline in diffusers' format, and ``work/``, which can be deleted afterwards.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from transformers import AutoTokenizer, UMT5EncoderModel

from radial_finetune.pretrain.autoencoder import train_autoencoder
from radial_finetune.pretrain.denoiser import DenoiserTraining, train_denoiser
from radial_finetune.pretrain.text import train_text_encoder, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m radial_finetune.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the training state")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--autoencoder-seconds", type=float, default=130)
    parser.add_argument("--autoencoder-clips", type=int, default=1536, help="clips the autoencoder learns from")
    parser.add_argument("--text-seconds", type=float, default=45)
    parser.add_argument("--denoiser-seconds", type=float, default=900)
    parser.add_argument("--batch-size", type=int, default=DenoiserTraining.batch_size)
    parser.add_argument("--pool-size", type=int, default=DenoiserTraining.pool_size)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device, work = torch.device(options.device), options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = True

    if not (work / "text_encoder").exists():
        tokenizer = train_tokenizer(options.seed)
        encoder = train_text_encoder(tokenizer, options.text_seconds, device, options.seed, log=_log)
        _write(work / "tokenizer", tokenizer.save_pretrained)
        _write(work / "text_encoder", encoder.save_pretrained)
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(work / "text_encoder").to(device).eval().requires_grad_(False)

    if not (work / "vae").exists():
        vae = train_autoencoder(
            options.autoencoder_seconds,
            device,
            options.seed,
            batch_size=min(24, options.batch_size),
            clips=options.autoencoder_clips,
            log=_log,
        )
        _write(work / "vae", vae.save_pretrained)
    vae = AutoencoderKLWan.from_pretrained(work / "vae").to(device).eval().requires_grad_(False)

    training = DenoiserTraining(
        seconds=options.denoiser_seconds,
        batch_size=options.batch_size,
        pool_size=options.pool_size,
        seed=options.seed,
        compile=not options.no_compile and device.type == "cuda",
    )
    transformer = train_denoiser(training, vae, tokenizer, encoder, device, work / "denoiser", log=_log)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=training.flow_shift
    )
    for model in (encoder, transformer, vae):
        model.to("cpu").half()
    pipe = WanPipeline(tokenizer=tokenizer, text_encoder=encoder, transformer=transformer, vae=vae, scheduler=scheduler)
    vae.register_to_config(_name_or_path="")  # where it lay while training is nobody's concern
    _write(options.out / "tiny", lambda path: pipe.save_pretrained(path, max_shard_size="15MB"))
    print(options.out / "tiny")


def _log(line: str) -> None:
    print(line, flush=True)


def _write(folder: Path, save: object) -> None:
    """Save under a temporary name, then rename, so that a stage is either done or not."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)  # type: ignore[operator]
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    main()
