"""What moves before the ground, found in thumbnails, and how its colours change.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from radial_finetune.evaluate.measures import camera, curves

Thumbnail = NDArray[np.uint8]
_FRAMES = 21  # that a ground is the median of
_AROUND, _WIDE = 32, 128  # frames that they are chosen from
_A_SECOND = 8  # frames that are looked at
_APART = 24  # of 255; what differs more from the ground is subject
_LEAST = 0.002  # of the frame; less is no subject
_THIN = 2.0  # pixels; what is thinner is edges
_CORE = 3.0  # pixels from the edge of a subject
_WHOLE = 0.6  # of the usual distance of the innermost point from the edge
_ANGLES = 16
_QUANTILES = np.linspace(0.05, 0.95, 13)


def positions(cameras: Sequence[camera.Matrix], scale: float) -> list[camera.Matrix]:
    """Where the first frame's points lie in each frame, in pixels of thumbnails."""
    places = [camera.still()]
    for step in cameras:
        scaled = step.copy()
        scaled[:, 2] *= scale
        places.append(camera.chain(places[-1], scaled))
    return places


class Subject:
    """The subject of a clip, in so many of its frames as it was looked for and found in.

    Attributes:
        frames: those that were looked at.
        colours: of each of them what :func:`_colours` gives, or not a number where there is no subject.
    """

    def __init__(
        self,
        thumbnails: Sequence[Thumbnail],
        places: Sequence[camera.Matrix],
        flashes: NDArray[np.bool_],
        again: NDArray[np.bool_],
        fps: float,
    ) -> None:
        """Look for what differs from the ground, the median over time with the camera's motion taken out.

        Args:
            flashes: frames that show nothing of it.
            again: frames that are shown again. They do not count for the ground: what stands still only because the
                clip does would become ground.
        """
        self._thumbnails, self._places = thumbnails, places
        self._usable, self._flashes = np.flatnonzero(~flashes & ~again), flashes
        self._moves = any(not np.allclose(place, camera.still(), atol=1e-3) for place in places)
        self._ground: Thumbnail | None = None
        self._rate = fps / max(1, round(fps / _A_SECOND))
        self.frames = np.arange(0, len(thumbnails), max(1, round(fps / _A_SECOND)))
        seen = [self._seen(int(frame)) for frame in self.frames]
        self.colours = np.stack([colours for colours, _ in seen])
        # Where most of it is hidden, by the frame's edge or by a ground that it stood on for long, its edges are left.
        depths = np.array([depth for _, depth in seen])
        self.colours[depths < max(_THIN, _WHOLE * float(np.median(depths)))] = np.nan

    def distances(self) -> tuple[NDArray[np.float64], float | None]:
        """Distance (CIE76) of each frame's colours from the middle of the first second's, and the largest distance of
        any second's; None where the first second, or all that comes after it, shows no subject."""
        there = ~np.isnan(self.colours[:, 0])
        window = curves.second(len(there), self._rate)
        judged = curves.running(there.astype(np.float64), window)
        if judged[0] < 0.5 or not there[window:].any():
            return np.full(len(there), np.nan), None
        # The middle of a second rather than its mean: of a few frames only edges of the subject may be seen.
        spans = [self.colours[i : i + window] for i in np.flatnonzero(judged >= 0.5)]
        middles = np.stack([np.nanmedian(span, axis=0) for span in spans])
        return _distance(self.colours, middles[0]), float(_distance(middles, middles[0]).max())

    def _seen(self, frame: int) -> tuple[NDArray[np.float64], float]:
        """Colours of the subject in a frame, and how far its innermost point is from its edge, in pixels."""
        nothing = np.full(_ANGLES * len(_QUANTILES), np.nan), 0.0
        if self._flashes[frame]:
            return nothing
        even, whole, ghosts = _parted(self._thumbnails[frame], self._ground_of(frame))
        mask = np.asarray(cv2.medianBlur(whole & ~ghosts & 1, 3), np.uint8)
        if mask.sum() < max(4, _LEAST * mask.size):
            return nothing
        # Where it is even: its edges are mixed with the ground, more so where they are blurred.
        depth = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_REPLICATE), cv2.DIST_L2, 3)
        depth = depth[1:-1, 1:-1]
        most = float(depth.max())
        inner = depth >= min(_CORE, 0.5 * most)
        change = cv2.morphologyEx(even, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(-1)
        return _colours(even[inner & (change <= np.median(change[inner]))]), most

    def _ground_of(self, frame: int) -> Thumbnail:
        """The ground as a frame sees it: the median of those frames that show at least half of the same."""
        if self._ground is not None:
            return self._ground
        own = self._thumbnails[frame]
        height, width = own.shape[:2]
        back = camera.inverse(self._places[frame])
        # All around it, and some of all others: of a long clip not every frame with every other.
        around = self._usable[np.abs(self._usable - frame) <= _AROUND]
        wide = self._usable[:: max(1, len(self._usable) // _WIDE)]
        ways = {i: camera.chain(back, self._places[i]) for i in {frame, *around.tolist(), *wide.tolist()}}
        near = sorted(i for i, way in ways.items() if self._shares(way, height, width))
        chosen = [near[i] for i in np.unique(np.linspace(0, len(near) - 1, _FRAMES).round().astype(int))]
        if not self._moves:
            self._ground = np.median([self._thumbnails[i] for i in chosen], axis=0).astype(np.uint8)
            return self._ground
        stack = []
        for i in chosen:
            seen = camera.covered(ways[i], height, width)[..., None]
            moved = camera.follow(self._thumbnails[i], ways[i], height, width)
            stack.append(np.where(seen, moved, np.float32(np.nan)))
        middle, count = _median(stack)
        return np.where(count < 3, own, middle).astype(np.uint8)

    @staticmethod
    def _shares(way: camera.Matrix, height: int, width: int) -> bool:
        across, down = np.abs(camera.centre_shift(way, height, width))
        scale = float(np.hypot(way[0, 0], way[0, 1]))
        return bool(across < 0.5 * width and down < 0.5 * height and 0.67 < scale < 1.5)


def _median(images: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of each pixel the median of those that are numbers, and how many they are."""
    ordered = np.sort(np.stack(images), axis=0)  # what is not a number comes last
    count = (~np.isnan(ordered)).sum(0)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]
    return np.nan_to_num(middle), count


def _parted(
    thumbnail: Thumbnail, ground: Thumbnail
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """A frame in the ground's light, where it differs, and where it does so only because the ground shows a subject
    that is not there: then the outline is in the ground and not in the frame."""
    even = _in_the_light_of(ground, thumbnail)
    apart = np.abs(even - ground).max(-1)
    mask = np.asarray(cv2.medianBlur((apart > _APART).astype(np.uint8), 3), np.uint8)  # no edges a pixel wide
    edges = [
        cv2.morphologyEx(cv2.GaussianBlur(image, (0, 0), 1.5), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(-1)
        for image in (even, ground.astype(np.float32))
    ]
    in_ground = cv2.blur(edges[1] - edges[0], (5, 5)) > 0
    around = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    _, nearest = cv2.distanceTransformWithLabels(around, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    nearest = nearest[1:-1, 1:-1]
    gone = np.zeros(int(nearest.max()) + 1, np.bool_)  # by the number of the pixel outside that is nearest
    gone[nearest[mask == 0]] = in_ground[mask == 0]
    return even, mask, (gone[nearest] & (mask > 0)).astype(np.uint8)


def _in_the_light_of(ground: Thumbnail, thumbnail: Thumbnail) -> NDArray[np.float32]:
    """A frame with its gain and offset made the ground's, by the pixels that are ground in both."""
    even = np.empty(thumbnail.shape, np.float32)
    for channel in range(3):
        x, y = (image[..., channel].astype(np.float32) for image in (ground, thumbnail))
        likely = gain = float(np.clip(np.median(y) / max(1.0, float(np.median(x))), 0.2, 5.0))
        offset = 0.0
        for _ in range(3):
            same = cv2.erode((np.abs(y - gain * x - offset) < _APART).astype(np.float32), np.ones((3, 3), np.uint8))
            if same.mean() < 0.2:
                break
            # Without what is fine, which goes where a frame is blurred though its light stays.
            share = cv2.GaussianBlur(same, (0, 0), 3)[same > 0]
            own, other = (cv2.GaussianBlur(image * same, (0, 0), 3)[same > 0] / share for image in (x, y))
            at, to = float(own.mean()), float(other.mean())
            own, other = own - at, other - to
            # An even ground says nothing of the gain: then it is the one without an offset.
            trust = 16 * len(own)
            gain = float(np.clip((own @ other + trust * likely) / (own @ own + trust), 0.2, 5.0))
            offset = to - gain * at
        even[..., channel] = (y - offset) / gain
    return even.clip(0, 255)


def _colours(pixels_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Colours as quantiles along directions of CIE Lab: their distances are those of sliced Wasserstein, which grow
    evenly as one colour goes over into another."""
    lab = cv2.cvtColor((pixels_NC / 255).reshape(1, -1, 3).astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    return np.asarray(np.quantile(lab @ _directions().T, _QUANTILES, axis=0), np.float64).ravel()


def _directions() -> NDArray[np.float32]:
    """Directions that cover half of a sphere evenly, on a spiral."""
    z = (np.arange(_ANGLES) + 0.5) / _ANGLES
    turn = np.pi * (1 + 5**0.5) * np.arange(_ANGLES)
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), z], axis=-1).astype(np.float32)


def _distance(colours: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    # Half of a difference is seen along a direction on average.
    return np.asarray(2 * np.abs(colours - reference).mean(-1))
