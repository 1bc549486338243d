"""Prompts said at more length by a language model of the user's choice, before a clip is made of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from radial.errors import ModelError, RadialError, RequestError, first_line, some
from radial.generation.watch import Event, OnEvent
from radial.loading.devices import find_device
from radial.loading.load import quiet
from radial.loading.memory import free_memory
from radial.models.find import check_language_model
from radial.models.hub.download import transformers_folder
from radial.request import GenerationRequest

MAX_NEW_TOKENS = 256
_SPARE = 2 << 30  # bytes that stay free on a GPU beside the weights
_TASK = (
    "Rewrite the prompt below for a model that makes short videos: one paragraph of at most 100 words that tells who "
    "is seen, what happens, where, in what light, and how the camera moves. Keep every fact and every name, add "
    "nothing that contradicts them, and keep to the prompt's language. Answer with the new prompt alone.\n\nPrompt: "
)


def enhanced(request: GenerationRequest, on_event: OnEvent = lambda event: None) -> GenerationRequest:
    """A request with what its language model makes of its prompt, and the prompt as it was written beside it; as it is
    where it names none, or that was done.

    The model's likeliest words are taken, so that on one machine they are the same at every attempt and seed. It is
    gone from memory afterwards.

    Args:
        on_event: told the prompt before and after.

    Raises:
        RequestError: the prompt is too long for the model.
        ModelError: it cannot be loaded safely, is none that can be asked, or has no answer.
    """
    if request.enhance is None or request.original_prompt is not None:
        return request
    check_language_model(request.enhance)
    name = Path(request.enhance).name if os.path.isdir(request.enhance) else request.enhance
    on_event(Event("load"))
    with _plain_errors(name), quiet(), torch.inference_mode():
        folder = Path(request.enhance) if os.path.isdir(request.enhance) else transformers_folder(request.enhance)
        said = _ask(folder, name, request.prompt, request.device)
    on_event(Event("load", note=f"prompt as written: {request.prompt}"))
    on_event(Event("load", note=f"prompt by {name}: {said}"))
    return request.with_values(prompt=said, original_prompt=request.prompt)


def _ask(folder: Path, name: str, prompt: str, device: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    safe = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"{name} has no chat template: take a model that was tuned to follow instructions")
    place = _place(folder, device)
    made: Any = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32 if place == "cpu" else torch.bfloat16,
        output_loading_info=True, **safe,
    )  # fmt: skip
    model, told = made
    if told["missing_keys"]:  # which would be filled up with chance
        raise ModelError(f"{name} lacks {some(sorted(told['missing_keys']))}")
    messages = [{"role": "user", "content": _TASK + prompt}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        enable_thinking=False,
    ).to(place)  # fmt: skip
    length = inputs["input_ids"].shape[1]
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length + MAX_NEW_TOKENS > most:
        raise RequestError(f"the prompt is {length} tokens with its task, and {name} reads {most - MAX_NEW_TOKENS}")
    answer = model.eval().to(place).generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1)
    text = _plain_text(tokenizer.decode(answer[0, length:], skip_special_tokens=True))
    del model, made
    if place != "cpu":
        torch.cuda.empty_cache()
    if not text:
        raise ModelError(f"{name} says nothing of the prompt in {MAX_NEW_TOKENS} tokens: leave enhance out")
    return text


def _place(folder: Path, device: str) -> str:
    """The request's device where the model has room on it, beside a video model that may be there, or the CPU."""
    place = find_device(device)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    fits = place != "cpu" and free_memory(torch.device(place)) > 1.25 * weights + _SPARE
    return place if fits else "cpu"


def _plain_text(answer: str) -> str:
    """An answer in one line, without what a model thought before it, or quotes around it."""
    *_, said = answer.split("</think>")
    if "<think>" in said:
        return ""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
    return line[1:-1].strip() if len(line) > 1 and line[0] + line[-1] in ('""', "''", "“”", "「」") else line


@contextlib.contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """What transformers raises meanwhile, in words of ours."""
    try:
        yield
    except RadialError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"memory ran out for {name}: take a smaller model, or leave enhance out") from error
    except Exception as error:  # the library raises many kinds
        why = str(error)
        if "trust_remote_code" in why:
            raise ModelError(
                f"{name} brings code of its own, which is not run; take a model that transformers knows by itself"
            ) from error
        raise ModelError(f"{name} cannot be asked as a language model: {first_line(error)}") from error
