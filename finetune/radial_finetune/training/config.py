"""What a fine-tuning run is told: a TOML file, checked whole before anything is loaded."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from radial.errors import RequestError
from radial.plans.layout import BlockSize, FarField, TokenOrder
from radial.plans.settings import Decay, DenseCount, Kind, SkipWidth
from radial_finetune.adapter.form import AdapterForm, Layers
from radial_finetune.adapter.form import Kind as AdapterKind
from radial_finetune.noise import Sampling, Weighting
from radial_finetune.objective import TrainedMemory
from radial_finetune.sample_prompts import SamplePrompt, parse_sample_prompt, read_sample_prompts
from radial_finetune.training.optimizers import LEARNING_RATES, Optimizer

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]

# Settings of step distillation, and what they are when left out there.
_OF_TEACHER = ("num_inference_steps", "teacher_steps", "guidance_scale", "negative_prompt")
_DISTILLED: dict[str, Any] = {"num_inference_steps": 4, "teacher_steps": 5, "caption_dropout": 0.0}
# What says otherwise which tokens see each other, or where they are.
_NOT_CAUSAL = (
    "decay", "skip_width", "dense_layers", "dense_every", "block_size", "far_field", "token_order", "riflex",
    "ulysses_degree", "first_frame_share", "last_frame_share",
)  # fmt: skip
# What is of packed clips, and what does not go with them.
_OF_PACKS = ("batch_pairs", "loss_mean")
_NOT_PACKED = ("objective", "curriculum", "token_order")
# What draws noise levels otherwise, or weighs them.
_OF_LEVELS = ("timestep_sampling", "logit_mean", "logit_std", "min_sigma", "max_sigma", "weighting_scheme")


class Stage(BaseModel):
    """A part of a curriculum: this many steps on clips of this length. The last one lasts to the end of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: Positive
    steps: Positive


class FinetuneConfig(BaseModel):
    """Settings of a run. Keys are those of the TOML file; unknown ones are errors.

    Attributes:
        objective: what is learned: ``flow_matching``, clips as they are; or ``step_distillation``, to make the model's
            clips in few steps and without guidance; or ``causal``, to make stories chunk by chunk, one prompt after
            the other.
        memory: of causal training, what a chunk sees of those before, and how memory is taught: a table, see
            :class:`~radial_finetune.objective.story_memory.TrainedMemory`.
        num_inference_steps: of step distillation, how many steps, 4 when left out.
        teacher_steps: the steps that the model itself takes for each of them, 5 when left out.
        guidance_scale, negative_prompt: with which it takes them; its own when left out.
        data: folder that ``radial finetune prepare`` wrote.
        output: folder for checkpoints and the adapter; a run in a folder that has checkpoints must resume them.
        expert: which of two transformers is tuned, at the noise levels it is for: ``high`` or ``low`` (Wan 2.2 A14B).
        adapter: ``lora``; ``dora``, which learns each row's magnitude too; ``lokr``, far smaller files of Kronecker
            products, of which ``lokr_factor`` is the size of the smaller matrix.
        rank, alpha: of the adapter; alpha is the rank when left out.
        rslora: alpha counts over the rank's root, not over the rank.
        ema_decay: of the average of the weights, which is validated, sampled and exported; it warms up.
        init_adapter: an adapter of the same layers and rank whose weights the run begins from.
        layers: ``self`` tunes self-attention, ``all`` the text's part of attention too, ``blocks`` also the
            feed-forward layers.
        norms: whether the norms of queries and keys are tuned along.
        batch_tokens: in place of ``batch_size``, a batch holds as many clips of its length as have so many tokens
            together, one at least: short clips leave no room unused. With ``packed``, of all lengths and sizes.
        packed: a step has clips of unlike sizes, each seeing itself alone, as many as ``batch_tokens`` and
            ``batch_pairs`` have room for; the latter is of pairs that attend, the sum of squares of clips' tokens.
        loss_mean: of packed clips: over each ``clip`` alike, or over each ``token``, so that longer ones count more.
        optimizer: ``adamw8bit`` keeps its moments in 8 bit (torchao); ``adafactor`` and ``came`` factors of them;
            ``prodigy`` finds the rate by itself.
        learning_rate: the optimizer's usual one when left out; of Prodigy, a factor of the rate that it finds.
        timestep_sampling: how noise levels are drawn; as the model's authors do when left out.
        logit_mean, logit_std: of the normal number whose sigmoid ``logit_normal`` draws.
        min_sigma, max_sigma: noise levels to train at, from 0, the clip, to 1, noise.
        weighting_scheme: how much the loss counts at each noise level, by diffusers' names.
        shift: of the noise levels, sigma = shift u / (1 + (shift - 1) u); when left out the authors' for the clip's
            size, else the checkpoint's.
        shift_by_length: whether the shift, own or chosen, grows with the square root of the length beyond the native
            one; generation then uses that of the longest clips.
        caption_dropout: share of clips trained without their caption, for guidance; 0.1, or 0 where it is an input.
        first_frame_share: share of clips that start from their own first frame, for models that start from text or from
            an image (Wan 2.2 5B), 0 when left out; others always do, or never.
        last_frame_share: share of those that end on their own last frame, for models with that choice (Wan 2.2 A14B).
        curriculum: lengths one after the other, such as the native one, 2x and 4x; all lengths mixed when left out.
        replay: share of batches, in the stages after the first, that are of the first stage's length.
        attention, decay, skip_width, dense_layers, block_size: as in generation; open ones take the model's preset for
            the length.
        dense_every: that generation, and the clips made meanwhile, take; training knows no steps.
        far_field, token_order: what becomes of blocks that radial attention leaves out, and the order of tokens, as in
            generation.
        gradient_checkpointing, offload_checkpoints: keep what enters each block, on the device or in the host's memory,
            and compute the rest again.
        offload_blocks: keep the frozen weights in the host's memory, but for those of two blocks at a time.
        base_precision: ``float8`` keeps the frozen weights in 8 bit, and widens each layer's as it is used. Not with
            compile.
        compile: compile the transformer's blocks, for packs once; pays off after some minutes of training.
        held_out: clips kept for validation, spread over the cache.
        sample_prompts: prompts of the clips that are made before the first step and every ``sample_every`` steps, at
            the native and at the target length or at ``sample_frames``; or the name of a file of them. Each may have a
            seed, a size and a negative prompt of its own.
        trackers: where to log beside ``log.jsonl``; TensorBoard, where it is installed, when left out.
        ulysses_degree: how many processes share each clip: tokens and heads are split, and what a process holds of a
            long clip shrinks. Divides the number of processes.
        max_bad_steps: steps in a row without a finite loss or gradient after which the run stops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str
    output: str
    objective: Literal["flow_matching", "step_distillation", "causal"] = "flow_matching"
    memory: TrainedMemory | None = None
    num_inference_steps: Annotated[int, Field(ge=2, le=100)] | None = None
    teacher_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    guidance_scale: Annotated[float, Field(ge=1, le=100)] | None = None
    negative_prompt: Annotated[str, Field(max_length=20_000)] | None = None
    model: str = "tiny"
    expert: Literal["high", "low"] | None = None
    adapter: AdapterKind = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 128
    alpha: Annotated[float, Field(gt=0)] | None = None
    rslora: bool = False
    lokr_factor: Annotated[int, Field(ge=2, le=1024)] | None = None
    init_adapter: str | None = None
    layers: Layers = "all"
    norms: bool = False
    steps: Positive = 1000
    batch_size: Positive = 1
    batch_tokens: Positive | None = None
    packed: bool = False
    batch_pairs: Positive | None = None
    loss_mean: Literal["clip", "token"] = "clip"
    gradient_accumulation_steps: Positive = 1
    optimizer: Optimizer = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = LEARNING_RATES["adamw"]
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: Count = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    timestep_sampling: Sampling | None = None
    logit_mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    logit_std: Annotated[float, Field(gt=0, le=10)] = 1.0
    min_sigma: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_sigma: Annotated[float, Field(gt=0, le=1)] = 1.0
    weighting_scheme: Weighting = "none"
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    shift_by_length: bool = False
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    first_frame_share: Annotated[float, Field(ge=0, le=1)] | None = None
    last_frame_share: Annotated[float, Field(ge=0, le=1)] | None = None
    curriculum: tuple[Stage, ...] = ()
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    attention: Kind = "radial"
    decay: Decay | None = None
    skip_width: SkipWidth | None = None
    dense_layers: Count | None = None
    dense_every: DenseCount = 0
    block_size: BlockSize | None = None
    far_field: FarField = "drop"
    token_order: TokenOrder = "raster"
    riflex: bool = False
    gradient_checkpointing: bool = True
    offload_checkpoints: bool = False
    offload_blocks: bool = False
    base_precision: Literal["full", "float8"] = "full"
    compile: bool = False
    ulysses_degree: Annotated[int, Field(ge=1, le=64)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # in float16 gradients vanish without scaling the loss
    checkpoint_every: Positive = 200
    keep_checkpoints: Positive = 2
    validate_every: Count = 200
    held_out: Count = 0
    sample_every: Count = 0
    sample_prompts: tuple[SamplePrompt, ...] = ()
    sample_frames: tuple[Positive, ...] = ()
    sample_steps: Positive | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    max_bad_steps: Positive = 10
    trigger: str = ""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled: dict[str, Any] = {}
        if values.get("optimizer") in LEARNING_RATES:
            filled["learning_rate"] = LEARNING_RATES[values["optimizer"]]
        if values.get("objective") == "step_distillation":
            filled |= _DISTILLED
        if values.get("objective") == "causal":
            filled |= {"memory": {}, "attention": "dense"}
        return filled | values

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _read_prompts(cls, value: Any) -> Any:
        try:
            if isinstance(value, str):
                return read_sample_prompts(Path(value))
            return tuple(parse_sample_prompt(one) if isinstance(one, str) else one for one in value)
        except RequestError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _goes_together(self) -> FinetuneConfig:
        if self.batch_tokens is not None and self.batch_size != 1:
            raise ValueError("batch_tokens and batch_size say the same: give one of them")
        if self.replay and len(self.curriculum) < 2:
            raise ValueError("replay needs a curriculum of two stages or more: it repeats the first one's length")
        if self.offload_checkpoints and not self.gradient_checkpointing:
            raise ValueError("offload_checkpoints needs gradient_checkpointing = true")
        if self.offload_blocks and not self.gradient_checkpointing:
            raise ValueError(
                "offload_blocks needs gradient_checkpointing = true: without it the backward pass keeps all weights"
            )
        if self.offload_blocks and self.compile:
            raise ValueError("compile does not go with offload_blocks, whose weights come and go: leave one out")
        if self.compile and self.base_precision == "float8" and self.gradient_checkpointing:
            raise ValueError(
                'compile does not go with base_precision = "float8": compiled blocks keep the narrow weights where '
                "computing them again finds the wide ones; leave one out"
            )
        if self.min_sigma >= self.max_sigma:
            raise ValueError(f"min_sigma {self.min_sigma:g} must be below max_sigma {self.max_sigma:g}")
        if self.timestep_sampling == "uniform" and (self.logit_mean, self.logit_std) != (0, 1):
            raise ValueError("logit_mean and logit_std are of logit_normal: leave them out, or timestep_sampling")
        if self.optimizer == "prodigy" and self.learning_rate < 0.1:
            raise ValueError(
                f"prodigy finds the rate by itself, and learning_rate is a factor of it: 0.1 to 10, not "
                f"{self.learning_rate:g}; leave it out for 1"
            )
        if self.optimizer != "prodigy" and self.learning_rate > 1:
            raise ValueError(f"learning_rate must be at most 1 with {self.optimizer}, not {self.learning_rate:g}")
        if self.optimizer == "muon" and (self.norms or self.adapter == "dora"):
            raise ValueError(
                "muon is for matrices, and norms and DoRA's magnitudes are none: leave them out, or take adamw"
            )
        if self.lokr_factor is not None and self.adapter != "lokr":
            raise ValueError('lokr_factor is of adapter = "lokr"')
        if self.rslora and self.adapter == "lokr":
            raise ValueError("rslora is of lora and dora: LoKr's scale is alpha over the rank")
        if self.adapter == "dora" and self.base_precision == "float8":
            raise ValueError("dora measures the frozen weights at every step, which float8 has rounded: take lora")
        if self.sample_every and not self.sample_prompts:
            raise ValueError("sample_every needs sample_prompts")
        return self

    @model_validator(mode="after")
    def _distils(self) -> FinetuneConfig:
        if not self.distills:
            if given := next((name for name in _OF_TEACHER if getattr(self, name) is not None), None):
                raise ValueError(f'{given} is of objective = "step_distillation"')
            return self
        if self.caption_dropout:
            raise ValueError("caption_dropout is for guidance, which a step-distilled adapter does without: leave it 0")
        if self.norms:
            raise ValueError("norms cannot be switched off, as the adapter is for its teacher: leave them out")
        if self.sample_steps not in (None, self.num_inference_steps):
            raise ValueError(f"samples are made in the {self.num_inference_steps} steps of num_inference_steps")
        fixed = FinetuneConfig.model_fields
        if given := next((name for name in _OF_LEVELS if getattr(self, name) != fixed[name].default), None):
            raise ValueError(f"{given} is of flow_matching: step_distillation trains at the levels of its steps")
        return self

    @model_validator(mode="after")
    def _tells_stories(self) -> FinetuneConfig:
        if self.objective != "causal":
            if self.memory is not None:
                raise ValueError('memory is of objective = "causal"')
            return self
        fixed = FinetuneConfig.model_fields
        if given := next((name for name in _NOT_CAUSAL if getattr(self, name) != fixed[name].default), None):
            raise ValueError(f"{given} is not for causal training, which sees what memory says: leave it out")
        if self.attention != "dense":
            raise ValueError("causal training sees what memory says, and no radial attention: leave attention out")
        if self.sample_every:
            raise ValueError("sample_every makes clips, and a causal adapter makes stories: leave it out")
        return self

    @model_validator(mode="after")
    def _packs(self) -> FinetuneConfig:
        fixed = FinetuneConfig.model_fields
        if not self.packed:
            if given := next((name for name in _OF_PACKS if getattr(self, name) != fixed[name].default), None):
                raise ValueError(f"{given} is of packed = true")
            return self
        if self.batch_tokens is None:
            raise ValueError("packed needs batch_tokens, for how many a step has room: the longest clip's, or more")
        if given := next((name for name in _NOT_PACKED if getattr(self, name) != fixed[name].default), None):
            raise ValueError(f"{given} does not go with packed clips: leave one out")
        return self

    @property
    def distills(self) -> bool:
        """Whether the adapter is for few steps."""
        return self.objective == "step_distillation"

    @property
    def adapter_form(self) -> AdapterForm:
        """The adapter that is tuned."""
        return AdapterForm(
            self.rank, float(self.rank) if self.alpha is None else self.alpha, self.layers, self.adapter,
            norms=self.norms, rslora=self.rslora, factor=self.lokr_factor or -1,
        )  # fmt: skip

    def sigmas_within(self, span: tuple[float, float]) -> tuple[float, float]:
        """The noise levels to train at, of those that an expert is for.

        Raises:
            RequestError: there are none.
        """
        low, high = max(span[0], self.min_sigma), min(span[1], self.max_sigma)
        if low >= high:
            raise RequestError(
                f"no noise level lies between {self.min_sigma:g} and {self.max_sigma:g}, and this expert is for "
                f"{span[0]:g} to {span[1]:g}"
            )
        return low, high

    def tokens_in_batch(self, tokens: int) -> int:
        """How many tokens a process takes at a time, of clips of so many."""
        if self.packed and self.batch_tokens is not None:
            return max(tokens, self.batch_tokens)
        return tokens * self.clips_in_batch(tokens)

    def clips_in_batch(self, tokens: int) -> int:
        """How many clips of so many tokens a process takes at a time."""
        return self.batch_size if self.batch_tokens is None else max(1, self.batch_tokens // tokens)


def read_config(path: Path, changes: list[str] | None = None) -> FinetuneConfig:
    """The configuration in a TOML file, with ``key=value`` changes on top.

    Raises:
        RequestError: the file is missing or no TOML, or a key or value breaks a rule; all of them are named.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not TOML: {error}") from error
    for change in changes or []:
        key, equals, text = change.partition("=")
        if not equals:
            raise RequestError(f"--set takes key=value, not {change!r}")
        values[key.strip()] = _value(text.strip())
    return make_config(**values)


def make_config(**values: Any) -> FinetuneConfig:
    """A configuration from loose values.

    Raises:
        RequestError: one line that names every key that breaks a rule.
    """
    try:
        return FinetuneConfig(**values)
    except ValidationError as error:
        raise RequestError("; ".join(_explain(problem) for problem in error.errors())) from error


def _value(text: str) -> Any:
    """A TOML value, or the text itself: ``--set model=tiny`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = _nearest(key)
        return f"unknown key {key!r}" + (f", did you mean {near!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key} {problem['msg'].removeprefix('Input should be ')}, not {problem['input']!r}"


def _nearest(key: str) -> str | None:
    import difflib

    known = Stage if key.startswith("curriculum.") else FinetuneConfig
    found = difflib.get_close_matches(key.rpartition(".")[2], known.model_fields, n=1, cutoff=0.5)
    return found[0] if found else None
