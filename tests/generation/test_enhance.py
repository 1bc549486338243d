"""Prompts by a language model: its likeliest words, both prompts kept, nothing loaded that is not safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_pipelines import CASES, VOCABULARY, _tokenizer

from radial import ModelError, RequestError
from radial.generation.conditions import enhance
from radial.generation.conditions.enhance import _plain_text, enhanced
from radial.generation.pipeline import generate
from radial.generation.watch import Event
from radial.request import GenerationRequest, make_request

PROMPT = "a red circle moves"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that was taught nothing, and a video model."""
    folder = tmp_path_factory.mktemp("enhance")
    torch.manual_seed(3)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder / "writer")
    _tokenizer().save_pretrained(folder / "writer")
    CASES["wan"].build().save_pretrained(folder / "wan")
    return folder


def likeliest(folder: Path, prompt: str) -> str:
    """The words that the model holds likeliest, one after the other."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.Qwen2ForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": enhance._TASK + prompt}]
    told = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(told, add_special_tokens=False, return_tensors="pt").input_ids
    begin = ids.shape[1]
    for _ in range(enhance.MAX_NEW_TOKENS):
        with torch.inference_mode():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == tokenizer.eos_token_id:
            break
    return _plain_text(tokenizer.decode(ids[0, begin:], skip_special_tokens=True))


def request_for(folder: Path, **more: Any) -> GenerationRequest:
    return make_request(
        prompt=PROMPT, model=str(folder / "wan"), enhance=str(folder / "writer"), seed=1, num_inference_steps=2,
        height=32, width=32, num_frames=5, **more,
    )  # fmt: skip


def test_both_prompts_are_told_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enhance, "MAX_NEW_TOKENS", 24)
    expected = likeliest(folder / "writer", PROMPT)
    assert expected
    assert expected != PROMPT
    events: list[Event] = []
    (video,) = generate(request_for(folder), on_event=events.append)
    told = [event.note for event in events if event.note]
    assert told[:2] == [f"prompt as written: {PROMPT}", f"prompt by writer: {expected}"]
    kept = video.receipt["request"]
    assert (kept["prompt"], kept["original_prompt"]) == (expected, PROMPT)
    again = make_request(**kept | {"enhance": "a/model-that-is-gone"})  # which need not be asked again
    (repeated,) = generate(again)
    assert np.array_equal(repeated.frames, video.frames)
    (plain,) = generate(make_request(**kept | {"enhance": None, "original_prompt": None}))
    assert np.array_equal(plain.frames, video.frames)
    assert enhanced(request_for(folder).with_values(seed=7)).prompt == expected


def test_what_cannot_be_asked_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        RequestError, match="enhance must be a folder that is there, or a hub id like org/name, not 'no-model'"
    ):
        request_for(folder).with_values(enhance="no-model").check_files()
    with pytest.raises(ModelError, match="the Hugging Face hub is not asked"):
        enhanced(request_for(folder).with_values(enhance="some/writer"))
    with pytest.raises(RequestError, match="enhance is for one prompt: leave then out"):
        request_for(folder, then=["it stops"])
    with pytest.raises(RequestError, match="original_prompt needs enhance"):
        make_request(prompt="a", original_prompt="b")
    with pytest.raises(RequestError, match=r"the prompt is \d+ tokens with its task, and writer reads 1792"):
        enhanced(request_for(folder).with_values(prompt="zebra " * 900))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((folder / "writer" / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is no model of transformers with weights as safetensors"):
        enhanced(request_for(folder).with_values(enhance=str(pickled)))
    for file in (folder / "writer").iterdir():
        if file.name not in ("chat_template.jinja", "pytorch_model.bin"):
            (pickled / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="pickled has no chat template"):
        enhanced(request_for(folder).with_values(enhance=str(pickled)))


def test_an_answer_is_one_line_of_words() -> None:
    assert _plain_text('<think>\nhm\n</think>\n\n"A red\n circle\x1b rises."') == "A red circle rises."
    assert _plain_text("<think> and no end") == ""
