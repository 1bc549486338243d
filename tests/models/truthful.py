"""Checkpoints as the hub has them: real classes, configurations and files of every named model, at small width.

What is truthful: the pipeline's and components' class names, the files and folders, configurations with all their keys,
weights in shards with an index, and the kind of tokenizer files:
those of T5 in CogVideoX, LTX-Video, Mochi and Allegro are a model of sentencepiece without a ``tokenizer.json``.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import tiny_minimax_h3
import tiny_pipelines
from tiny_pipelines import CASES

from radial.models.table import MODELS

# The tiny pipeline of each named model that the app drives.
CASE_OF = {
    "anyflow-wan2.1-14b": "anyflow",
    "wan2.1-1.3b": "wan", "wan2.1-14b": "wan", "wan2.1-i2v-14b-480p": "wan-i2v", "wan2.1-i2v-14b-720p": "wan-i2v",
    "wan2.1-flf2v-14b": "wan-flf", "wan2.1-vace-1.3b": "wan-vace", "wan2.1-vace-14b": "wan-vace",
    "wan2.2-a14b": "wan22", "wan2.2-i2v-a14b": "wan22-i2v", "wan2.2-ti2v-5b": "wan22-ti2v",
    "skyreels-v2-14b": "skyreels-v2", "skyreels-v2-i2v-14b": "skyreels-v2-i2v", "skyreels-v2-df-1.3b": "skyreels-v2-df",
    "hunyuan-video": "hunyuan-video", "hunyuan-video-i2v": "hunyuan-video-i2v", "hunyuan-video-1.5": "hunyuan-video15",
    "hunyuan-video-1.5-i2v": "hunyuan-video15-i2v", "mochi": "mochi", "ltx-video": "ltx", "ltx-2": "ltx2",
    "cogvideox-2b": "cogvideox", "cogvideox-5b": "cogvideox", "cogvideox-5b-i2v": "cogvideox-i2v",
    "cogvideox-fun-5b-pose": "cogvideox-fun", "ltx-video-0.9.5": "ltx-condition",
    "ltx-video-0.9.7-13b": "ltx-condition", "allegro": "allegro",
    "easyanimate-v5.1-12b": "easyanimate", "cosmos-1.0-7b": "cosmos", "kandinsky-5-lite": "kandinsky5",
    "minimax-h3": "minimax-h3", "framepack": "framepack", "framepack-f1": "framepack",
    "wan2.2-animate-14b": "wan-animate",
}  # fmt: skip
SENTENCEPIECE = {
    "mochi", "ltx-video", "ltx-video-0.9.5", "ltx-video-0.9.7-13b", "cogvideox-2b", "cogvideox-5b", "cogvideox-5b-i2v",
    "cogvideox-fun-5b-pose", "allegro",
}  # fmt: skip
_WORDS = "a red circle moves to the left large star right on striped background blue green square rises falls " * 20


def write_checkpoint(model: str, folder: Path) -> Path:
    """A small copy of a named model's checkpoint, as its repository on the hub lies."""
    if model == "minimax-h3":  # a modular pipeline's, which does not save itself as its repository lies
        tiny_minimax_h3.write_checkpoint(folder)
    else:
        pipe = _BUILD[CASE_OF[model]]() if CASE_OF[model] in _BUILD else CASES[CASE_OF[model]].build()
        pipe.save_pretrained(folder, max_shard_size="60KB")
    if model in SENTENCEPIECE:
        _as_sentencepiece(folder)
    (folder / "README.md").write_text(f"---\nlicense: other\n---\n# {model}\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "assets").mkdir()
    (folder / "assets" / "teaser.png").write_bytes(b"\x89PNG" + bytes(500))
    return folder


def write_pieces(model: str, folder: Path) -> dict[str, Path]:
    """The places that a model's components lie in on the hub, but for its base, by their names there."""
    whole = folder / "whole"
    CASES[CASE_OF[model]].build().save_pretrained(whole, max_shard_size="60KB")
    places = {}
    for piece in MODELS[model].pieces:
        places[piece.source] = folder / piece.source.replace("/", "--")
        shutil.copytree(whole / piece.component, places[piece.source] / piece.folder, dirs_exist_ok=True)
    shutil.rmtree(whole)
    return places


def _wan22_i2v() -> Any:
    """Two transformers that start from an image's latents, without an image encoder."""
    parts = tiny_pipelines._wan_parts()
    transformers = [tiny_pipelines._wan_transformer(in_channels=36) for _ in range(2)]
    return tiny_pipelines._build(lambda: diffusers.WanImageToVideoPipeline(
        **parts, transformer=transformers[0], transformer_2=transformers[1], boundary_ratio=0.9,
        image_encoder=None, image_processor=None,
    ))  # fmt: skip


def _hunyuan_video_i2v() -> Any:
    """Images of as many patches as the pipeline's template has places for, 24 by 24, and that in as many tokens."""
    import transformers
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE

    changed = {
        "_SMALL_VISION": tiny_pipelines._SMALL_VISION | {"image_size": 48}, "VOCABULARY": 1000,
        "PROMPT": DEFAULT_PROMPT_TEMPLATE["template"] + tiny_pipelines.PROMPT,
    }  # fmt: skip
    before = {name: getattr(tiny_pipelines, name) for name in changed}
    vars(tiny_pipelines).update(changed)
    try:
        pipe = CASES["hunyuan-video-i2v"].build()
    finally:
        vars(tiny_pipelines).update(before)
    pipe.register_modules(image_processor=transformers.CLIPImageProcessor(size=48, crop_size=48))
    return pipe


def _hunyuan_video15_i2v() -> Any:
    """Clips of the sizes that the published model makes."""
    pipe = CASES["hunyuan-video15-i2v"].build()
    pipe.transformer.register_to_config(target_size=640)
    return pipe


_BUILD = {
    "wan22-i2v": _wan22_i2v, "hunyuan-video-i2v": _hunyuan_video_i2v, "hunyuan-video15-i2v": _hunyuan_video15_i2v,
}  # fmt: skip


@functools.cache
def _sentencepiece() -> bytes:
    """A model of sentencepiece as T5's, of a few words."""
    import io

    import sentencepiece

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([_WORDS] * 5), model_writer=content, vocab_size=60, model_type="unigram", pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return content.getvalue()


def _as_sentencepiece(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model_index.json").read_text())
    (checkpoint / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "T5Tokenizer"]}))
    folder = checkpoint / "tokenizer"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "spiece.model").write_bytes(_sentencepiece())
    extra = [f"<extra_id_{index}>" for index in range(100)]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": extra}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "legacy": True, "model_max_length": 226,
              "sp_model_kwargs": {}, "clean_up_tokenization_spaces": True, **special}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
