"""Captions for clips and pictures that have none, by a vision language model of transformers.

Weights are read as safetensors, and code that a model brings is not run.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from radial.errors import ModelError, OutputError, RadialError, RequestError, first_line
from radial.files import publish, publish_text
from radial.loading.devices import find_device
from radial.loading.load import quiet
from radial.models.find import HUB_ID
from radial.models.hub.download import OnProgress, transformers_folder
from radial.video.images import read_image
from radial.video.reader import open_clip
from radial_finetune.data.captions import find_sidecars
from radial_finetune.data.directories import DATASET_FILE
from radial_finetune.data.sources import find_media, is_picture

PROMPT = (
    "Describe this video in one paragraph: who or what is seen, how it looks, how it moves, where it is, the light and "
    "how the camera moves. Say only what is seen."
)
_LONGEST_SIDE = 1024  # of a frame that the model is shown; processors scale on


@dataclass(frozen=True)
class Captioner:
    """A vision language model, and how it is asked.

    Attributes:
        frames: of a clip, spread over it, that it is shown.
        trigger: a word that every caption begins with.
    """

    processor: Any
    model: Any
    prompt: str = PROMPT
    frames: int = 8
    trigger: str = ""
    max_new_tokens: int = 256

    def describe(self, file: Path) -> str:
        """The caption of a clip or picture.

        Raises:
            RequestError, OutputError: the file cannot be read, or the model says nothing of it.
            ModelError: the model cannot be asked so.
        """
        if is_picture(file):
            images = [_smaller(read_image(file)[0])]
        else:
            images = [Image.fromarray(frame) for frame in spread_frames(file, self.frames)]
        said = self._ask(images)
        if not said:
            raise OutputError(f"the model says nothing of {file.name}")
        return said if not self.trigger or said.startswith(self.trigger) else f"{self.trigger}, {said}"

    @torch.inference_mode()
    def _ask(self, images: list[Image.Image]) -> str:
        shown: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        messages = [{"role": "user", "content": [*shown, {"type": "text", "text": self.prompt}]}]
        try:
            inputs = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device, self.model.dtype)
            told = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"memory ran out at {len(images)} frames: show the model fewer, by --frames") from error
        except Exception as error:  # the library and its models raise many kinds
            raise ModelError(f"the model cannot be asked about {len(images)} frames: {first_line(error)}") from error
        answer = told[:, inputs["input_ids"].shape[1] :]
        text: str = self.processor.batch_decode(answer, skip_special_tokens=True)[0]
        return " ".join(text.split())  # a line is a caption


def load_captioner(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    on_progress: OnProgress = lambda done, total: None,
    **asked: Any,
) -> Captioner:
    """The model of a folder or a hub id.

    Args:
        on_progress: told bytes that are here, and of the whole, where it must be downloaded first.
        asked: what else a :class:`Captioner` is told.

    Raises:
        RequestError: the name is neither, or there is no such device.
        ModelError: it is no vision language model that can be loaded safely, or a package that it needs is missing.
    """
    device = find_device(device)
    if os.path.isdir(name):
        folder = Path(name)
    elif HUB_ID.fullmatch(name):
        folder = transformers_folder(name, on_progress)
    else:
        raise RequestError(f"--model takes a folder or a hub id like org/name, not {name[:200]!r}")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(f"{name} is no model of transformers with weights as safetensors")
    numbers = ("bfloat16" if device != "cpu" else "float32") if dtype == "auto" else dtype
    with _plain_errors(name), quiet():
        from transformers import AutoModelForImageTextToText, AutoProcessor

        safe = {"local_files_only": True, "trust_remote_code": False}
        processor = AutoProcessor.from_pretrained(folder, **safe)
        if not getattr(processor, "chat_template", None):
            raise ModelError(f"{name} has no chat template: it is no model that can be asked about pictures")
        model = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype=getattr(torch, numbers), **safe
        )
        return Captioner(processor, model.to(device).eval(), **asked)


@contextlib.contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """What transformers raises meanwhile, in words of ours."""
    try:
        yield
    except RadialError:
        raise
    except ImportError as error:
        packages = [word for word in ("torchvision", "num2words") if word in str(error).lower()]
        how = "pip install 'radial-video[caption]'" if packages else first_line(error)
        raise ModelError(f"{name} needs {' and '.join(packages) or 'a package that is missing'}: {how}") from error
    except Exception as error:  # the library raises many kinds
        why = str(error)
        if "trust_remote_code" in why:
            raise ModelError(
                f"{name} brings code of its own, which is not run; take a model that transformers knows by itself"
            ) from error
        raise ModelError(f"{name} cannot be loaded as a vision language model: {first_line(error)}") from error


def files_to_caption(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """The clips and pictures of a folder that have no caption beside them.

    Args:
        overwrite: whether those that have one count too.

    Raises:
        RequestError: it is no folder, has no clips, or a table in it says the captions.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder")
    table = next((n for n in ("metadata.jsonl", "metadata.csv", DATASET_FILE) if (folder / n).is_file()), None)
    if table is not None:
        raise RequestError(f"{folder} has a {table}, which counts in place of texts beside its clips")
    files = find_media(folder)
    if not files:
        raise RequestError(f"{folder} has no videos or pictures")
    told = find_sidecars(files)
    return [file for file in files if overwrite or not told[file]]


def write_caption(file: Path, caption: str, *, overwrite: bool) -> Path:
    """Write a caption beside its clip, whole or not at all: its file.

    Raises:
        OutputError: there is one already and ``overwrite`` is not set, or the folder cannot be written.
    """
    beside = file.with_suffix(".txt")
    if overwrite:
        publish_text(beside, f"{caption}\n")
    else:
        publish(beside, lambda partial: partial.write_text(f"{caption}\n", encoding="utf-8"), overwrite=False)
    return beside


def spread_frames(file: Path, count: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """So many frames of a clip, evenly spread over it; all where it has no more.

    Raises:
        OutputError: it cannot be read as a video.
    """
    # How long a clip is, is known at its end: every second frame that is kept goes whenever there are twice too many.
    kept: list[Any] = []
    step, total = 1, 0
    with open_clip(file, file.name) as clip:
        for _, frame in clip.frames():
            if total % step == 0:
                kept.append(np.asarray(_smaller(Image.fromarray(frame))))
                if len(kept) > 4 * count:
                    kept, step = kept[::2], 2 * step
            total += 1
    if not kept:
        raise OutputError(f"{file.name} has no frames")
    places = [min(len(kept) - 1, round((part + 0.5) * total / count / step - 0.5)) for part in range(count)]
    return [kept[place] for place in sorted({max(0, place) for place in places})]


def _smaller(image: Image.Image) -> Image.Image:
    if max(image.size) <= _LONGEST_SIDE:
        return image
    image = image.copy()
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return image


def check_trigger(word: str) -> str:
    """A word that captions begin with.

    Raises:
        RequestError: it is more than a line, or long.
    """
    if re.search(r"[\r\n]", word) or len(word) > 100:
        raise RequestError(f"--trigger takes a word or a few, on one line, not {word[:100]!r}")
    return word.strip().rstrip(",")
