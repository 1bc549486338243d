"""What takes much memory, one at a time: two videos against each other, the picture of a plan, and masks that follow
what they are drawn on."""

from __future__ import annotations

import io
import tempfile
import threading
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from radial.errors import OutputError, RequestError
from radial.models.find import find_model
from radial.video.encoding import Encoding, encode
from radial.video.fidelity import fidelity
from radial.video.finishing.sources import Sources
from radial.video.masks.tracked import track_drawing
from radial.video.reader import at_rate, decode_frames
from radial_app.server.service import Missing, ServerPaths, Service
from radial_app.server.uploads import Upload

MAX_COMPARED = 200 * 1280 * 720  # pixels of all frames that two clips may have to be compared here
MAX_COMPARED_FRAME = 4096 * 2304  # pixels
MAX_TRACKED = 300  # frames that a mask follows something through


class Drawing(BaseModel):
    """A mask that is drawn on a frame: ids of a clip and of an image that is white in it, the second of that frame, the
    pixels that the mask is widened by, and whether it goes to where colours part."""

    clip: Annotated[str, Field(max_length=200)]
    drawn: Annotated[str, Field(max_length=200)]
    at: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    grow: Annotated[int, Field(ge=0, le=200)] = 4
    edges: bool = True


class Tracked(BaseModel):
    """A mask through a clip, for a request's ``mask``, and the clip with it in red: both are uploads."""

    mask: Upload
    preview: Upload


class Comparison(BaseModel):
    """How near two videos are: PSNR in dB and SSIM, and what to know of how they were compared."""

    psnr: float
    ssim: float
    note: str | None = None


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1", tags=["pictures"])

    alone = threading.Lock()

    @router.get("/compare")
    def compare_videos(
        request: Request, a: str, b: str, index_a: Annotated[int, Query(ge=0)] = 0,
        index_b: Annotated[int, Query(ge=0)] = 0,
    ) -> Comparison:  # fmt: skip
        """How near two videos of one size are: PSNR in dB and SSIM, means over frames; of two rates, at the lower."""
        here = Service(paths, request.state.visitor)
        jobs = [here.get(a).request, here.get(b).request]
        if any(r.clip_frames * r.clip_height * r.clip_width > MAX_COMPARED for r in jobs):
            raise RequestError("these videos are too long to be compared here; `radial evaluate` compares them")
        if any(r.clip_height * r.clip_width > MAX_COMPARED_FRAME for r in jobs):
            raise RequestError("these videos are too large to be compared here; `radial evaluate` compares them")
        files = [here.file(id_, index) for id_, index in ((a, index_a), (b, index_b))]
        rates = [r.fps or 1 for r in jobs]
        clips = (at_rate(decode_frames(file), own, min(rates)) for file, own in zip(files, rates, strict=True))
        with alone:
            try:
                near, alike = fidelity(*clips)
            except ValueError as error:
                sizes = " and ".join(f"{r.clip_frames} frames of {r.clip_width}x{r.clip_height}" for r in jobs)
                raise RequestError(f"videos of one size can be compared, not {sizes}") from error
            except OutputError as error:
                raise Missing("one of the videos cannot be read any more") from error
        rate = min(rates)
        note = None if len({*rates}) == 1 else f"their rates differ: compared at {rate} frames a second"
        return Comparison(psnr=round(near, 2), ssim=round(alike, 4), note=note)

    @router.post("/masks")
    def follow_mask(request: Request, drawing: Drawing) -> Tracked:
        """A mask that is drawn on one frame, followed through its clip."""
        inputs = Service(paths, request.state.visitor).inputs
        files = inputs.translate({"control_video": drawing.clip, "mask": drawing.drawn})
        source = Sources.look([Path(files["control_video"])])
        if source.count > MAX_TRACKED or source.height * source.width > MAX_COMPARED_FRAME:
            raise RequestError(
                f"a mask is followed through at most {MAX_TRACKED} frames of 4096x2304 here; `radial control mask` "
                "takes longer clips"
            )
        at = int(drawing.at * source.rate + 1e-6)
        uploads = []
        with alone, tempfile.TemporaryDirectory(prefix="radial-") as folder:
            made = Path(folder) / "mask.mp4"
            clip = (frame() for frame in source.frames())
            tracked = track_drawing(clip, Path(files["mask"]), at, grow=drawing.grow, edges=drawing.edges)
            for frames in (tracked.frames(), tracked.over(frame() for frame in source.frames())):
                encode(frames, source.rate, {}, made, Encoding())
                with made.open("rb") as content:
                    uploads.append(inputs.take(content))
        return Tracked(mask=uploads[0], preview=uploads[1])

    @router.get("/plan.png")
    def draw_attention(
        request: Request, model: str = "tiny", height: int | None = None, width: int | None = None,
        num_frames: int | None = None, attention: str | None = None, decay: float | None = None,
        density: float | None = None,
    ) -> Response:  # fmt: skip
        """A picture of which blocks of attention a clip computes."""
        from radial.plans.drawing import draw_plan

        fields = {"prompt": "plan", "model": model, "height": height, "width": width, "num_frames": num_frames,
                  "attention": attention, "decay": decay, "density": density, "seed": 0}  # fmt: skip
        resolved = Service(paths, request.state.visitor).check(fields)
        spec = find_model(resolved.model)
        size = f"{resolved.clip_width}x{resolved.clip_height}, {resolved.clip_frames} frames"
        content = io.BytesIO()
        with alone:
            sketch = resolved.attention_settings.sketch(resolved.grid(spec))
            draw_plan(sketch, f"{spec.name}, {size}").save(content, "PNG")
        return Response(content.getvalue(), media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    return router
