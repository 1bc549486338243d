"""The bundled model's text encoder taught who is spoken of, without a change to what it says of captions without a
name: the denoisers and adapters that were trained on those stay as good as they were.

``python -m radial_finetune.pretrain.name_text --model FOLDER --out FOLDER``.

A name is any word. Whatever else a line says, each of its tokens must tell it from other names, those that differ in a
letter among them. And where a line does not say how a figure looks, no token may claim that it does: every token was
trained to tell all of a figure, and what it then makes up would be believed before the memory of a story.

Shapes: N lines, T tokens of a line, D the text's width, C of a name's code.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UMT5EncoderModel

from radial_finetune.pretrain.story_text import moved_by, teach
from radial_finetune.world.caption import describe
from radial_finetune.world.cast import draw_name
from radial_finetune.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SPEEDS, Figure, draw_scene
from radial_finetune.world.story import Actor, Event, Story, draw_story
from radial_finetune.world.story_caption import describe_event, describe_story

_LOOKS = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES)}  # that a line may leave unsaid
_QUESTIONS: dict[str, int] = {
    **{name: len(known) for name, known in _LOOKS.items()},
    "motion": len(MOTIONS), "speed": len(SPEEDS), "ground": len(BACKGROUNDS), "described": 2,
}  # fmt: skip
_CODE, _SHARPNESS, _NOISE = 48, 16.0, 0.2
_KNOWN = 2000  # native captions that it is held to


@dataclass(frozen=True, eq=False)
class _Lines:
    """Lines of stories, those of one name beside each other.

    Attributes:
        tokens, seen: ``[N, T]``.
        answers: ``[N]`` each; -100 where a line does not say.
    """

    tokens: Tensor
    seen: Tensor
    answers: dict[str, Tensor]


def teach_names(
    tokenizer: Any, encoder: UMT5EncoderModel, seconds: float, seed: int = 0, names: int = 32, anchor: float = 60.0,
    log: Callable[[str], None] = print,
) -> UMT5EncoderModel:  # fmt: skip
    """Train for a span of time on lines of stories with a cast.

    Args:
        names: in a step, two lines each.
        anchor: weight of the mean square distance from what it said of captions without a name, in units of its
            variance.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    before = copy.deepcopy(encoder).float().eval().requires_grad_(False)
    encoder = copy.deepcopy(encoder).float().train().requires_grad_(True)
    width = encoder.config.d_model
    heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in _QUESTIONS.items()})
    code = nn.Linear(width, _CODE, bias=False)
    weights = [*encoder.parameters(), *heads.parameters(), *code.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    native = [describe(draw_scene(rng, 1 + rng.randrange(2)), rng).text for _ in range(_KNOWN)]
    longer = [describe_story(draw_story(rng, rng.choice((1, 2, 3, 4, 6))), rng).text for _ in range(_KNOWN // 2)]
    started, step, last_log = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * min(1.0, (1 - done) / 0.6)
        moved = moved_by(tokenizer, encoder, before, rng.sample(native, names // 2) + rng.sample(longer, names // 4))
        lines = _draw_lines(tokenizer, rng, names)
        hidden = encoder(lines.tokens, attention_mask=lines.seen).last_hidden_state
        hidden = hidden + _NOISE * torch.randn_like(hidden)  # asks for answers that stand well apart
        loss, right = anchor * moved, {}
        for name, head in heads.items():
            asked, right[name] = _ask(head(hidden), lines.answers[name], lines.seen, name in _LOOKS)
            loss = loss + asked
        told, right["name"] = _tell_apart(F.normalize(code(hidden), dim=-1), lines.seen)
        (loss + 2 * told).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if time.monotonic() - last_log > 20:
            last_log = time.monotonic()
            log(
                f"{done:4.0%} step {step} moved {moved.item():.5f} "
                + " ".join(f"{n} {r:.3f}" for n, r in right.items())
            )
    log(f"done: {step} steps, captions without a name moved by {moved.item():.5f} of their variance")
    return encoder.eval().requires_grad_(False)


def _draw_lines(tokenizer: Any, rng: random.Random, names: int) -> _Lines:
    known: list[str] = []
    while len(known) < names:  # every other one differs from the one before by a letter
        name = _misspelt(known[-1], rng) if len(known) % 2 else draw_name(rng)
        if name not in known:
            known.append(name)
    texts, answers = [], {name: torch.full((2 * names,), -100) for name in _QUESTIONS}
    for row in range(2 * names):
        event = Event(rng.choice(MOTIONS), rng.choice(SPEEDS), rng.random() < 0.5)
        figure = Figure(rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), "rest", "normal")
        story = Story((Actor(figure, (event,), (0.5, 0.5)),), rng.choice(BACKGROUNDS), 0, 1)
        named = rng.random() < 0.5
        texts.append(f"{known[row // 2]}: {describe_event(story, 0, rng, named=named)}")
        said = {"motion": MOTIONS.index(event.motion), "ground": BACKGROUNDS.index(story.background),
                "described": int(named)}  # fmt: skip
        if event.motion != "rest":
            said["speed"] = SPEEDS.index(event.speed)
        if named:
            looks = {"shape": figure.shape, "colour": figure.colour, "size": figure.size}
            said |= {name: _LOOKS[name].index(look) for name, look in looks.items()}
        for name, value in said.items():
            answers[name][row] = value
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    return _Lines(inputs.input_ids, inputs.attention_mask, answers)


def _misspelt(name: str, rng: random.Random) -> str:
    place = rng.randrange(len(name))
    return name[:place] + rng.choice("abcdefghijklmnopqrstuvwxyz") + name[place + 1 :]


def _ask(logits_NTA: Tensor, answers_N: Tensor, seen_NT: Tensor, uniform: bool) -> tuple[Tensor, float]:
    """The loss of a question to every token, and how often the answer is right.

    Args:
        uniform: whether lines that do not say must leave all answers alike.
    """
    seen, said = seen_NT.bool(), answers_N != -100
    answers_NT = answers_N[:, None].expand_as(seen_NT)
    asked = seen & said[:, None]
    loss = F.cross_entropy(logits_NTA[asked], answers_NT[asked])
    if uniform and bool((~said).any()):
        loss = loss - logits_NTA[seen & ~said[:, None]].log_softmax(-1).mean()
    return loss, (logits_NTA.argmax(-1) == answers_NT)[asked].float().mean().item()


def _tell_apart(code_NTC: Tensor, seen_NT: Tensor) -> tuple[Tensor, float]:
    """The loss of finding a token's name among the other lines', and how often it is found."""
    seen = seen_NT.bool()
    of_line_NC = F.normalize((code_NTC * seen[..., None]).sum(1), dim=-1)
    losses, found = [], []
    for own, other in ((0, 1), (1, 0)):
        logits = _SHARPNESS * code_NTC[own::2] @ of_line_NC[other::2].T
        wanted = torch.arange(len(logits))[:, None].expand(logits.shape[:2])
        mask = seen[own::2]
        losses.append(F.cross_entropy(logits[mask], wanted[mask]))
        found.append((logits.argmax(-1) == wanted)[mask].float().mean().item())
    return torch.stack(losses).mean(), sum(found) / 2


if __name__ == "__main__":
    teach(teach_names, "name_text", __doc__, 900)
