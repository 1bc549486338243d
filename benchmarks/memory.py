"""Memory profiles and the time to the first step, on a GPU: ``python benchmarks/memory.py``.

Writes a checkpoint of Wan 2.1 1.3 B at full size with random weights (text encoder and autoencoder too, 15 GB in all)
and makes a clip from it with every memory profile, each in a process of its own: peak memory of the GPU against the
estimate, seconds of a step, of decoding, and from the start of the process to the end of the first step; the last also
for stock diffusers, which loads the same checkpoint onto the GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/full-size-wan"))
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--kinds", nargs="+", default=["stock", "full", "stock", "full", "balanced", "low", "lowest"],
                        help="profiles, each with a precision after a comma, or xN for N processes")  # fmt: skip
    parser.add_argument("--child", help="what a process of its own runs")
    options = parser.parse_args()
    if options.child:
        found = run(options)
        if found:
            print(json.dumps(found), flush=True)
        return
    if not (options.folder / "model_index.json").is_file():
        started = time.monotonic()
        write_checkpoint(options.folder)
        print(f"checkpoint written in {time.monotonic() - started:.0f} s", flush=True)
    print(f"Wan 2.1 1.3 B, {options.height}x{options.width}, {options.frames} frames, {STEPS} steps\n"
          f"  {'':26} {'peak GB':>8} {'estimate':>9} {'s a step':>9} {'decode s':>9} {'first step after s':>19}",
          flush=True)  # fmt: skip
    for kind in options.kinds:
        child, _, processes = kind.partition(" x")
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes else []
        command = [sys.executable, *several, __file__, "--child", child, "--folder", str(options.folder), "--frames",
                   str(options.frames), "--height", str(options.height), "--width", str(options.width)]  # fmt: skip
        started = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"  {kind:26} {done.stderr.strip()[-2000:]}", flush=True)
            continue
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {kind:26} {found['peak']:8.2f} {found['estimate']:9.2f} {found['step']:9.2f} {found['decode']:9.1f} "
              f"{found['first'] - started:19.1f}", flush=True)  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, float]:
    """A clip of one kind, with its times and memory."""
    if options.child == "stock":
        return run_stock(options)
    from radial.generation.ranks import joined

    with joined() as ranks:
        return run_ours(options, ranks)


def run_stock(options: argparse.Namespace) -> dict[str, float]:
    import torch
    from diffusers import WanPipeline

    marks: list[float] = []
    dtypes = {"default": torch.bfloat16, "vae": torch.float32}
    pipe = WanPipeline.from_pretrained(options.folder, dtype=dtypes).to("cuda")
    pipe("a fox", height=options.height, width=options.width, num_frames=options.frames, num_inference_steps=STEPS,
         callback_on_step_end=lambda pipe, step, timestep, tensors: marks.append(_now()) or tensors)  # fmt: skip
    return _found(marks, _now(), 0.0)


def run_ours(options: argparse.Namespace, ranks: Any) -> dict[str, float]:
    """Nothing where another process leads."""
    import radial
    from radial.loading.load import choose_device, choose_dtype
    from radial.loading.needs import needs_of
    from radial.models.checkpoint import read_folder
    from radial.models.weights import weights_in
    from radial.request import make_request

    profile, _, precision = options.child.partition(",")
    request = make_request(
        prompt="a fox", model=str(options.folder), height=options.height, width=options.width, seed=1,
        num_frames=options.frames, num_inference_steps=STEPS, memory=profile, precision=precision or "full",
        device=ranks.device if ranks else "cuda",
    ).resolve()  # fmt: skip
    device = choose_device(request.device)
    number = choose_dtype("auto", device).itemsize
    needs = needs_of(request, read_folder(options.folder), weights_in(options.folder), number,
                     processes=ranks.size if ranks else 1)  # fmt: skip
    marks: list[float] = []

    def follow(event: Any) -> None:
        if event.stage == "denoise" and event.step:
            marks.append(_now())

    for _ in radial.generate(request, on_event=follow, ranks=ranks):
        pass
    if ranks and not ranks.is_first:
        return {}
    return _found(marks, _now(), needs.vram(profile) / 1e9)


def _now() -> float:
    import torch

    torch.cuda.synchronize()
    return time.time()


def _found(marks: list[float], end: float, estimate: float) -> dict[str, float]:
    import torch

    # What the driver says: all that another program could not have meanwhile.
    reserved = torch.cuda.max_memory_reserved() / 1e9
    steps = (marks[-1] - marks[0]) / (len(marks) - 1)
    return {"peak": reserved, "estimate": estimate, "step": steps, "decode": end - marks[-1], "first": marks[0]}


def write_checkpoint(folder: Path) -> None:
    """All components of Wan 2.1 1.3 B, random."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    def filled(module: Any, dtype: torch.dtype) -> Any:
        module = module.to(dtype).to_empty(device="cuda")
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.data.normal_(0, 0.02)
        return module.cpu()

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "fox": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    encoder = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                         is_encoder_decoder=False)  # fmt: skip
    with torch.device("meta"):
        text_encoder = UMT5EncoderModel(encoder)
        transformer = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
        vae = AutoencoderKLWan()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=filled(text_encoder, torch.bfloat16), vae=filled(vae, torch.float32),
        transformer=filled(transformer, torch.bfloat16), scheduler=scheduler,
    )  # fmt: skip
    pipe.save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    main()
