"""The bundled model's tokenizer and text encoder.

Wan's text encoder is frozen, so this one is trained first, by a question a denoiser will ask of it: every token
must tell all about the figure it speaks of. Which colour belongs to which shape is then settled before denoising.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from radial_finetune.world.caption import Caption, describe
from radial_finetune.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SPEEDS, Scene, draw_scene

TEXT_LENGTH = 128  # tokens a prompt is padded to, in training and at generation
_QUESTIONS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "motion": MOTIONS,
    "speed": SPEEDS,
    "place": ("alone", "left", "right", "top", "bottom"),
    "background": BACKGROUNDS,
}


def train_tokenizer(seed: int = 0, captions: int = 4000) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the caption grammar; any text at all still has tokens."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [describe(draw_scene(rng, 1 + i % 2), rng).text for i in range(captions)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def train_text_encoder(
    tokenizer: PreTrainedTokenizerFast,
    seconds: float,
    device: torch.device,
    seed: int = 0,
    batch_size: int = 256,
    log: Callable[[str], None] = print,
) -> UMT5EncoderModel:
    """Train for a span of time on endless captions; logs the share of tokens that answer every question right."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        is_encoder_decoder=False,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    encoder = UMT5EncoderModel(config).to(device)
    heads = nn.ModuleDict({name: nn.Linear(128, len(answers)) for name, answers in _QUESTIONS.items()}).to(device)
    weights = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    start, step, last_log = time.monotonic(), 0, 0.0
    right = torch.zeros(())
    while (done := (time.monotonic() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, step / 50) * min(1.0, (1 - done) / 0.6)
        tokens, mask, answers = _batch(tokenizer, rng, batch_size)
        tokens, mask = tokens.to(device), mask.to(device)
        hidden = encoder(tokens, attention_mask=mask).last_hidden_state
        # A little noise asks for answers that stand well apart.
        hidden = hidden + 0.3 * torch.randn_like(hidden)
        loss = torch.zeros((), device=device)
        all_right = torch.ones_like(tokens, dtype=torch.bool)
        for name, head in heads.items():
            target = answers[name].to(device)
            logits = head(hidden)
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
            all_right &= (logits.argmax(-1) == target) | (target == -100)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        right = all_right[mask.bool()].float().mean()
        if time.monotonic() - last_log > 10:
            last_log = time.monotonic()
            log(f"text {done:4.0%} step {step} loss {loss.item():.4f} tokens all right {right.item():.3f}")
    log(f"text encoder done: {step} steps, {right.item():.4f} of tokens answer every question right")
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def encode_text(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, texts: list[str], device: torch.device
) -> Tensor:
    """Embeddings ``[B, TEXT_LENGTH, 128]``, zero beyond each text's end, as WanPipeline makes them."""
    inputs = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt").to(
        device
    )
    hidden = encoder(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    return hidden * inputs.attention_mask[..., None]


def _batch(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    scenes = [draw_scene(rng, 1 + rng.randrange(2)) for _ in range(size)]
    captions = [describe(scene, rng) for scene in scenes]
    inputs = tokenizer(
        [c.text for c in captions],
        padding="max_length",
        max_length=TEXT_LENGTH,
        truncation=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    answers = {name: torch.full((size, TEXT_LENGTH), -100) for name in _QUESTIONS}
    for row, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        answers["background"][row, inputs.attention_mask[row].bool()] = BACKGROUNDS.index(scene.background)
        for column, (start, end) in enumerate(inputs.offset_mapping[row].tolist()):
            index = _figure_of(caption, start, end)
            if index is not None:
                for name, value in _facts(scene, index).items():
                    answers[name][row, column] = _QUESTIONS[name].index(value)
    return inputs.input_ids, inputs.attention_mask, answers


def _figure_of(caption: Caption, start: int, end: int) -> int | None:
    for index, (first, last) in enumerate(caption.spans):
        if end > start and start >= first - 1 and end <= last:
            return index
    return None


def _facts(scene: Scene, index: int) -> dict[str, str]:
    figure = scene.figures[index]
    place = {
        (0.0, 0.0, 1.0, 1.0): "alone",
        (0.0, 0.0, 0.5, 1.0): "left",
        (0.5, 0.0, 1.0, 1.0): "right",
        (0.0, 0.0, 1.0, 0.5): "top",
        (0.0, 0.5, 1.0, 1.0): "bottom",
    }[figure.region]
    facts = {name: getattr(figure, name) for name in ("shape", "colour", "size", "motion")} | {"place": place}
    # A figure at rest has no speed to speak of.
    return facts if figure.motion == "rest" else facts | {"speed": figure.speed}
