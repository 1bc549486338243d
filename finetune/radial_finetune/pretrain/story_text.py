"""The bundled model's text encoder taught what comes when in a longer story, without a change to what it says of
native captions: the denoiser that was trained on those stays as good as it was.

``python -m radial_finetune.pretrain.story_text --model FOLDER --out FOLDER``.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, UMT5EncoderModel

from radial_finetune.pretrain.text import TEXT_LENGTH
from radial_finetune.world.caption import describe
from radial_finetune.world.scene import COLOURS, MOTIONS, SHAPES, SIZES, SPEEDS, draw_scene
from radial_finetune.world.story import COMING, LEAVING, draw_story
from radial_finetune.world.story_caption import describe_story

MOST_EVENTS = 16
_DOES = (*MOTIONS, *LEAVING, *COMING)
_QUESTIONS: dict[str, int] = {
    "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES), "motion": len(_DOES), "speed": len(SPEEDS),
    "unit": MOST_EVENTS, "last": 2, "next": len(_DOES) + 1, "goes on": 2,
}  # fmt: skip


def continue_text_encoder(
    tokenizer: Any, encoder: UMT5EncoderModel, seconds: float, seed: int = 0, batch_size: int = 48,
    anchor: float = 30.0, log: Callable[[str], None] = print,
) -> UMT5EncoderModel:  # fmt: skip
    """Train for a span of time on endless stories, held to what it said of native captions.

    Args:
        anchor: weight of the mean square distance from that, in units of its variance.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    before = copy.deepcopy(encoder).eval().requires_grad_(False)
    encoder = copy.deepcopy(encoder).float().train().requires_grad_(True)
    before = before.float()
    width = encoder.config.d_model
    heads = nn.ModuleDict({name.replace(" ", "_"): nn.Linear(width, count) for name, count in _QUESTIONS.items()})
    weights = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    started, step, last_log = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * min(1.0, (1 - done) / 0.6)
        native = [describe(draw_scene(rng, 1 + rng.randrange(2)), rng).text for _ in range(batch_size)]
        moved = moved_by(tokenizer, encoder, before, native)
        tokens, seen, answers = _batch(tokenizer, rng, batch_size)
        hidden = encoder(tokens, attention_mask=seen).last_hidden_state
        hidden = hidden + 0.2 * torch.randn_like(hidden)  # asks for answers that stand well apart
        loss, right = anchor * moved, []
        for name in _QUESTIONS:
            logits = heads[name.replace(" ", "_")](hidden)
            loss = loss + F.cross_entropy(logits.flatten(0, 1), answers[name].flatten(), ignore_index=-100)
            known = answers[name] != -100
            right.append((name, (logits.argmax(-1) == answers[name])[known].float().mean().item()))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if time.monotonic() - last_log > 20:
            last_log = time.monotonic()
            log(f"{done:4.0%} step {step} moved {moved.item():.5f} " + " ".join(f"{n} {r:.3f}" for n, r in right))
    log(f"done: {step} steps, native captions moved by {moved.item():.5f} of their variance")
    return encoder.eval().requires_grad_(False)


def _batch(tokenizer: Any, rng: random.Random, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Stories, and the answers that each token of an event must give."""
    stories = [draw_story(rng, rng.choice((1, 2, 3, 4, 4, 6, 8, 12, 16))) for _ in range(size)]
    captions = [describe_story(story, rng) for story in stories]
    inputs = tokenizer([c.text for c in captions], padding=True, max_length=TEXT_LENGTH, truncation=True,
                       return_tensors="pt", return_offsets_mapping=True)  # fmt: skip
    answers = {name: torch.full(inputs.input_ids.shape, -100) for name in _QUESTIONS}
    for row, (story, caption) in enumerate(zip(stories, captions, strict=True)):
        for column, (start, end) in enumerate(inputs.offset_mapping[row].tolist()):
            for number, index, first, last in caption.spans:
                if not (end > start and start >= first - 1 and end <= last):
                    continue
                actor = story.actors[number]
                event, figure = actor.events[index], actor.figure
                after = actor.events[index + 1].motion if index + 1 < len(actor.events) else None
                told = {
                    "shape": SHAPES.index(figure.shape), "colour": list(COLOURS).index(figure.colour),
                    "size": list(SIZES).index(figure.size), "motion": _DOES.index(event.motion),
                    "unit": min(actor.enters + index, MOST_EVENTS - 1), "last": int(after is None),
                    "next": len(_DOES) if after is None else _DOES.index(after), "goes on": int(actor.goes_on),
                }  # fmt: skip
                if event.motion in MOTIONS and event.motion != "rest":
                    told["speed"] = SPEEDS.index(event.speed)
                if len(actor.events) > 1:
                    del told["goes on"]  # told by its being one of several
                for name, value in told.items():
                    answers[name][row, column] = value
    return inputs.input_ids, inputs.attention_mask, answers


def moved_by(tokenizer: Any, encoder: UMT5EncoderModel, before: UMT5EncoderModel, captions: list[str]) -> Tensor:
    """The mean square distance of what an encoder says of captions from what it said before, in units of its
    variance."""
    inputs = tokenizer(captions, padding=True, max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    given = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    with torch.no_grad():
        wanted = before(**given).last_hidden_state
    mask = inputs.attention_mask.bool()
    moved: Tensor = (encoder(**given).last_hidden_state - wanted)[mask].square().mean() / wanted[mask].var()
    return moved


def teach(train: Callable[..., UMT5EncoderModel], name: str, about: str | None, seconds: float) -> None:
    """The command of a module that trains the text encoder further."""
    parser = argparse.ArgumentParser(prog=f"python -m radial_finetune.pretrain.{name}", description=about)
    parser.add_argument("--model", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--out", type=Path, required=True, help="folder for the text encoder")
    parser.add_argument("--seconds", type=float, default=seconds)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(options.model / "text_encoder")
    trained = train(tokenizer, encoder, options.seconds, log=lambda line: print(line, flush=True))
    trained.half().save_pretrained(options.out)


if __name__ == "__main__":
    teach(continue_text_encoder, "story_text", __doc__, 600)
