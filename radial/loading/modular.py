"""diffusers' modular pipelines, called as its other pipelines are: one call from a prompt to frames and sound.

A modular pipeline is a graph of blocks, and components that are loaded one by one. Here the graph is cut to the task,
and its denoising loop gets one more block, which tells of each step.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


def pipeline_class(name: str, *, from_image: bool) -> Any:
    """The class of diffusers of that name; of modular pipelines one of ours that is called like the others.

    Args:
        from_image: whether it is to start from an image, which is another task to modular pipelines.
    """
    import diffusers

    if name == "MiniMaxH3ModularPipeline":
        return _minimax_h3("fl2va" if from_image else "t2va")
    return getattr(diffusers, name)


@functools.cache
def processor_class() -> Any:
    """What text and keyframes take of Qwen3-VL's processor: its part for videos needs torchvision."""
    import transformers

    class Processor(transformers.Qwen3VLProcessor):
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
        ) -> None:
            self.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
            self.video_token_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
            transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return Processor


@functools.cache
def _minimax_h3(task: str) -> Any:
    import diffusers
    from accelerate import cpu_offload_with_hook
    from diffusers.modular_pipelines import ModularPipelineBlocks
    from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

    class TellStep(ModularPipelineBlocks):
        """The last block of the denoising loop: tells what diffusers' other pipelines tell after each step."""

        model_name = "minimax-h3"

        @property
        def inputs(self) -> list[Any]:
            return [InputParam("callback_on_step_end"), InputParam("latents", required=True)]

        def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
            if block_state.callback_on_step_end is not None:
                block_state.callback_on_step_end(components, i, t, {"latents": block_state.latents})
            return components, block_state

    class MiniMaxH3Pipeline(diffusers.MiniMaxH3ModularPipeline):
        """MiniMax-H3 from a prompt, or from one and keyframes; also of lengths that it was not trained on."""

        @property
        def min_duration(self) -> float:
            return 0.0

        @property
        def max_duration(self) -> float:
            return float("inf")

        @classmethod
        def from_pretrained(
            cls, folder: Path, *, dtype: Mapping[str, Any], use_safetensors: bool = True, **own: Any
        ) -> Any:
            """Load the task's components from a folder, whatever its index says of other places.

            Args:
                dtype: of components by name, and of the others by ``default``.
                own: components that are loaded already.
            """
            blocks = diffusers.MiniMaxH3Blocks().get_workflow(task)
            blocks.sub_blocks["denoise.denoise"].sub_blocks["tell"] = TellStep()
            pipe = cls(blocks=blocks)
            for name in pipe.pretrained_component_names:
                if name in own:
                    continue
                kind = processor_class() if name == "processor" else pipe.get_component_spec(name).type_hint
                options = {}
                if issubclass(kind, torch.nn.Module):
                    options = {"dtype": dtype.get(name, dtype["default"]), "use_safetensors": use_safetensors}
                with warnings.catch_warnings():  # what torch thinks of how diffusers normalises weights
                    warnings.simplefilter("ignore", FutureWarning)
                    own[name] = kind.from_pretrained(folder / name, local_files_only=True, **options)
            pipe.update_components(**own)
            return pipe

        def set_progress_bar_config(self, **options: Any) -> None:
            for block in self._blocks.sub_blocks.values():
                if hasattr(block, "set_progress_bar_config"):
                    block.set_progress_bar_config(**options)

        def enable_model_cpu_offload(self, device: Any) -> None:
            """Have the large components on the device in turn."""
            before = None
            for name in ("text_encoder", "transformer", "vae", "audio_vae"):
                _, before = cpu_offload_with_hook(getattr(self, name), device, prev_module_hook=before)

        def __call__(
            self, prompt: str, image: Any = None, last_image: Any = None, height: int | None = None,
            width: int | None = None, num_frames: int = 124, num_inference_steps: int = 49, generator: Any = None,
            output_type: str = "np", callback_on_step_end: Any = None,
        ) -> Any:  # fmt: skip
            """A clip with its sound; ``num_inference_steps`` are calls of the transformer, where diffusers counts the
            points between which they go."""
            keyframes = {"image": image, "last_image": last_image} if task == "fl2va" else {}
            state = super().__call__(
                prompt=prompt, height=height, width=width, num_frames=num_frames,
                num_inference_steps=num_inference_steps + 1, generator=generator, output_type=output_type,
                callback_on_step_end=callback_on_step_end, **keyframes,
            )  # fmt: skip
            return SimpleNamespace(
                frames=state.get("videos"), audio=state.get("audio"), sampling_rate=state.get("sampling_rate")
            )

    return MiniMaxH3Pipeline
