"""Which of a model's two transformers an adapter is for: Wan 2.2 switches from one for high noise to one for low."""

from __future__ import annotations

import re
from collections.abc import Sequence

from radial.adapters.file import AdapterFile
from radial.errors import ModelError
from radial.models.experts import Expert, expert_in
from radial.models.lora_settings import Lora, read_adapter_settings


def told_expert(file: AdapterFile) -> Expert | None:
    """Which one a file is for, by what it says of itself, and by its name; None where neither says so."""
    settings = read_adapter_settings(file.path)
    if settings is not None and settings.expert is not None:
        return settings.expert
    parts = {entry.part for entry in file.entries} - {"text"}
    if parts == {"transformer_2"}:
        return "low"
    if "transformer_2" in parts:
        return None
    if (noise := _noise_of(file.metadata.get("modelspec.timestep_range"))) is not None:
        return noise
    said = " ".join(
        str(value) for key, value in file.metadata.items()
        if key in ("ss_output_name", "modelspec.title", "name", "title", "ss_training_comment", "ss_sd_model_name")
    )  # fmt: skip
    return expert_in(file.path.stem) or expert_in(said)


def _noise_of(timesteps: object) -> Expert | None:
    """By the timesteps that musubi-tuner trained at, as "875,1000": one transformer's half of them."""
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", str(timesteps))
    if match is None:
        return None
    least, most = int(match[1]), int(match[2])
    return "high" if least >= 800 else "low" if least < 500 and most <= 900 else None


def choose_experts(files: Sequence[AdapterFile], loras: Sequence[Lora], transformers: int) -> list[Expert | None]:
    """The transformer of each adapter, as the request says or the file; None for all that there are.

    Raises:
        ModelError: the request names one of two transformers, and the model has one.
    """
    if transformers < 2:
        for file, lora in zip(files, loras, strict=True):
            if lora.expert is not None:
                raise ModelError(
                    f"LoRA {file.path.name} is to act on the {lora.expert}-noise transformer, and this model has one "
                    f"transformer alone; leave @{lora.expert} out"
                )
        return [None] * len(loras)
    return [lora.expert or told_expert(file) for file, lora in zip(files, loras, strict=True)]


def expert_notes(files: Sequence[AdapterFile], chosen: Sequence[Expert | None], transformers: int) -> list[str]:
    """What a user should hear of how adapters were shared out over two transformers."""
    if transformers < 2 or not files:
        return []
    notes = []
    for file, expert in zip(files, chosen, strict=True):
        both = any(entry.part == "transformer_2" for entry in file.entries)
        if expert is not None:
            notes.append(f"LoRA {file.path.name} acts on the {expert}-noise transformer")
        elif not both:
            notes.append(
                f"LoRA {file.path.name} acts on both transformers: its name says neither high nor low noise; FILE@high "
                "or FILE@low would"
            )
    halves = {expert for expert in chosen if expert is not None}
    if len(halves) == 1 and None not in chosen:
        (given,) = halves
        other = "low" if given == "high" else "high"
        notes.append(f"only the {given}-noise half of a pair is given: the {other}-noise transformer runs without one")
    return notes
