"""The file that ``radial profile`` writes: how much of a model's velocity each layer's sparse attention changes at each
step; policies are made of it.

Shapes: K parts of a run, L layers, M planners.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radial.errors import ModelError, RequestError, explain, first_line
from radial.files import bundled_file, bundled_names, publish
from radial.plans.layout import BlockSize, FarField, TokenGrid, TokenOrder
from radial.plans.measured.budget import spend
from radial.plans.policy import TablePolicy

MAX_DENSITIES = 16
TARGET_SHARE = 0.4  # of attention's work, where nothing else is asked for
VERSION = 1
_KEY = "radial_policy"
_MAX_BYTES = 32 << 20
_NEAR = 1.25  # times as long, or as large, for a clip to be of the same size class
_Number = Annotated[int, Field(ge=1, le=4096)]
_Text = Annotated[str, Field(max_length=400)]


class About(BaseModel):
    """What was measured, and on what.

    Attributes:
        model: its name; of a checkpoint's folder or file, the folder's or file's.
        grid: latent tokens along frames, height and width.
        height, width, num_frames, num_inference_steps: of the clips.
        densities: of the planners, which are adaptive; the others are settings that they have in common.
        prompts: how many.
        weights, loras: of what, as digests.
        device: that ``seconds`` are of.
        radial: the version that wrote it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    version: Literal[1] = 1
    model: _Text
    grid: tuple[_Number, _Number, _Number]
    height: Annotated[int, Field(ge=16, le=8192)]
    width: Annotated[int, Field(ge=16, le=8192)]
    num_frames: _Number
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)]
    densities: Annotated[
        tuple[Annotated[float, Field(ge=0.02, le=0.95)], ...], Field(min_length=1, max_length=MAX_DENSITIES)
    ]
    block_size: BlockSize
    far_field: FarField
    token_order: TokenOrder
    sink_frames: Annotated[int, Field(ge=0, le=4097)]
    prompts: _Number
    weights: _Text
    loras: Annotated[tuple[dict[str, _Text], ...], Field(max_length=32)] = ()
    device: _Text
    radial: _Text

    @property
    def size(self) -> str:
        """In words."""
        return f"{self.width}x{self.height} and {self.num_frames} frames"


@dataclass(frozen=True, eq=False)
class PolicyFile:
    """What was measured.

    Attributes:
        error_KLM: relative square error of the velocity against the dense one, with one layer sparse, mean of prompts.
        shares: ``[M + 1]``, pairs of attention that a layer computes, first of a dense one.
        seconds: ``[M + 1]``, of a call of the transformer with all layers alike, first dense.
    """

    about: About
    error_KLM: NDArray[np.float32] = field(repr=False)
    shares: NDArray[np.float32] = field(repr=False)
    seconds: NDArray[np.float32] = field(repr=False)

    def __post_init__(self) -> None:
        planners = len(self.about.densities)
        shapes = self.error_KLM.ndim == 3 and self.error_KLM.shape[2] == planners and self.error_KLM.size > 0
        if not shapes or self.shares.shape != (planners + 1,) or self.seconds.shape != (planners + 1,):
            raise ValueError("its tables are not of the shapes that its text says")
        tables = (self.error_KLM, self.shares, self.seconds)
        if not all(np.isfinite(table).all() and (table >= 0).all() for table in tables):
            raise ValueError("its tables hold what is no measure")
        if self.shares.min() <= 0 or self.shares.max() > 1 or self.seconds.min() <= 0:
            raise ValueError("its tables hold what is no measure")

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write it as safetensors.

        Raises:
            OutputError: the place cannot be written.
        """
        from safetensors.numpy import save_file

        tensors = {"error": self.error_KLM, "shares": self.shares, "seconds": self.seconds}
        metadata = {_KEY: self.about.model_dump_json()}
        publish(path, lambda partial: save_file(tensors, partial, metadata), overwrite=overwrite)

    def policy(self, target_share: float | None, target_speed: float | None) -> TablePolicy:
        """The policy of least error that is as fast as wanted.

        Args:
            target_share: most of attention's work that it may compute.
            target_speed: how many times faster than dense a call is to be, by the seconds that were measured.

        Raises:
            RequestError: no policy is.
        """
        if target_speed is None:
            wanted = TARGET_SHARE if target_share is None else target_share
            if wanted < self.shares.min() - 1e-6:
                least = np.ceil(100 * self.shares.min()) / 100
                raise RequestError(f"target_share must be at least {least:g} with this policy, not {wanted:g}")
            return spend(self.error_KLM, self.shares, wanted)
        costs = self.seconds / self.seconds[0]
        if costs.min() >= 1:
            raise RequestError(
                f"target_speed {target_speed:g} cannot be: on {self.about.device}, where this policy was measured, no "
                "density is faster than dense; target_share says what to compute on any device"
            )
        if target_speed * costs.min() > 1 + 1e-6:
            most = np.floor(100 / costs.min()) / 100
            raise RequestError(
                f"target_speed must be at most {most:g} with this policy, the most that was measured on "
                f"{self.about.device}, not {target_speed:g}; target_share says what to compute on any device"
            )
        return spend(self.error_KLM, costs, 1 / target_speed)

    def as_arguments(self, target_share: float | None = None, target_speed: float | None = None) -> dict[str, Any]:
        """What :func:`radial.apply` takes to follow it; see :meth:`policy`.

        Raises:
            RequestError: no policy is as fast as wanted.
        """
        from radial.plans.planner import AdaptivePlanner  # brings torch, which takes seconds

        about = self.about
        planners = [AdaptivePlanner(one, about.block_size, about.sink_frames) for one in about.densities]
        return {
            "planners": planners, "policy": self.policy(target_share, target_speed), "block_size": about.block_size,
            "far_field": about.far_field, "token_order": about.token_order,
        }  # fmt: skip

    def open_fields(self, target_speed: float | None) -> dict[str, Any]:
        """What a request takes over of it where it leaves it open."""
        common = {name: getattr(self.about, name) for name in _COMMON}
        return {"attention": "adaptive", **common, "target_share": TARGET_SHARE if target_speed is None else None}

    def check(self, model: str, grid: TokenGrid, attention: Mapping[str, Any]) -> None:
        """Make sure that it is for such clips.

        Args:
            model: its name, or where it lies.
            attention: the settings of a request.

        Raises:
            RequestError: it is of another model or size class, or of another way to attend; or there is no policy as
                fast as wanted.
        """
        if Path(model).name != self.about.model:
            raise RequestError(
                f"the policy was measured on {self.about.model}, not on {Path(model).name}: `radial profile` makes one"
            )
        frames, height, width = self.about.grid
        pairs = ((grid.frames, frames), (grid.tokens_per_frame, height * width))
        if any(not 1 / _NEAR <= ours / theirs <= _NEAR for ours, theirs in pairs):
            raise RequestError(
                f"the policy was measured at {self.about.size}, and serves what is within a quarter of that: "
                "`radial profile` makes one of this size"
            )
        if attention["kind"] != "adaptive":
            raise RequestError(f"policy is for adaptive attention, not {attention['kind']}: leave attention out")
        for name in _COMMON:
            if attention[name] != (measured := getattr(self.about, name)):
                raise RequestError(
                    f"the policy was measured with {name} {measured}, not {attention[name]}: leave {name} out"
                )
        self.policy(attention["target_share"], attention["target_speed"])


_COMMON = ("block_size", "far_field", "token_order", "sink_frames")


def policy_path(name: str) -> Path:
    """Where a policy lies; ``bundled:NAME`` is one that comes with the package.

    Raises:
        ModelError: it cannot be a name.
    """
    return bundled_file(name, "policies", "policy")


def bundled_policies() -> list[str]:
    """The names of the policies that come with the package."""
    return bundled_names("policies")


def read_policy(path: Path) -> PolicyFile:
    """What was measured, as a file says it.

    Raises:
        ModelError: there is no such file, it is of another version, broken, or no policy.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"no policy file {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path.name} is no policy: it is larger than any")
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise ModelError(f"{path.name} is no policy: `radial profile` makes them")
            told = json.loads(text)
            if isinstance(told, dict) and told.get("version") != VERSION:
                raise ModelError(
                    f"{path.name} is a policy of version {str(told.get('version'))[:20]}, and this radial reads "
                    f"{VERSION}: measure it anew with `radial profile`, or update radial"
                )
            about = About.model_validate_json(text)
            tables = [file.get_tensor(name).astype(np.float32) for name in ("error", "shares", "seconds")]
        return PolicyFile(about, *tables)
    except ValidationError as error:
        raise ModelError(f"{path.name} says of itself what cannot be: {explain(error.errors()[0])}") from error
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the policy {path.name} is broken: {first_line(error)}") from error


def check_policy_file(path: Path) -> None:
    """Make sure, before a model is loaded for it, that a file is a policy.

    Raises:
        RequestError: it is none.
    """
    try:
        read_policy(path)
    except ModelError as error:
        raise RequestError(str(error)) from error
