"""A small client of the REST interface, on the standard library alone.

client = Client("http://127.0.0.1:7860", key="rk_...")
video = client.create("a red fox runs through snow", model="wan2.1-1.3b", seconds=5)
client.download(client.wait(video.id).id, "fox.mp4")
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radial.errors import OutputError, RequestError
from radial.files import publish


@dataclass(frozen=True)
class RemoteVideo:
    """A video as the server told of it; ``raw`` is all it said."""

    id: str
    status: str
    state: str
    progress: int
    eta: float | None
    prompt: str
    files: int
    error: str
    raw: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True)
class RemoteStory:
    """A story as the server told of it: the segment it is at, from 1, of how many, and for how long its film plays
    already; ``raw`` is all it said."""

    id: str
    status: str
    state: str
    progress: int
    eta: float | None
    segment: int
    segments: int
    playable_seconds: float
    error: str
    raw: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class Client:
    """Speaks with one server.

    Args:
        url: where it listens.
        key: an account's key, where the server has accounts.
    """

    def __init__(self, url: str = "http://127.0.0.1:7860", key: str | None = None, timeout: float = 60) -> None:
        self._url, self._timeout = url.rstrip("/"), timeout
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def create(self, prompt: str, **fields: Any) -> RemoteVideo:
        """Put a video into the queue; fields are those of a request, and ``size`` and ``seconds``.

        Raises:
            RequestError: the server refuses, and says why.
            OutputError: it does not answer.
        """
        return _video(self._call("POST", "/v1/videos", {"prompt": prompt} | fields))

    def finish(self, id: str, **fields: Any) -> RemoteVideo:
        """Put a job into the queue that finishes a video that is there, into one of its own: fields are those of
        ``radial finish``, ``index`` which of its files, and ``join`` ids of videos that are joined to it first."""
        return _video(self._call("POST", f"/v1/videos/{id}/finish", fields))

    def create_story(self, lines: Sequence[str | dict[str, Any]], **fields: Any) -> RemoteStory:
        """Put a story into the queue: its prompts, or objects of ``prompt``, ``name``, ``look``, ``seconds``, ``cut``,
        ``seed`` and ``remember``; fields are those of a video's request, and of stories. :meth:`wait`,
        :meth:`download`, :meth:`cancel` and :meth:`delete` take its id as a video's.

        Raises:
            RequestError: the server refuses, and says why.
            OutputError: it does not answer.
        """
        return _story(self._call("POST", "/v1/stories", {"lines": list(lines)} | fields))

    def continue_story(
        self, id: str, lines: Sequence[str | dict[str, Any]] = (), *, keep: int | None = None,
        remember: dict[int, str | int | None] | None = None,
    ) -> RemoteStory:  # fmt: skip
        """Go on with a story whose film has ended: another one of its segments, or of its first ``keep``, and lines.
        ``remember`` says by number how segments that stay are remembered from now on: ``pin``, ``drop``, the number of
        another one, or None as all are; the film is made anew from the first segment on that reads what was changed."""
        body: dict[str, Any] = {"lines": list(lines), "remember": remember or {}}
        body |= {} if keep is None else {"keep": keep}
        return _story(self._call("POST", f"/v1/stories/{id}/continue", body))

    def get_story(self, id: str) -> RemoteStory:
        """How a story stands."""
        return _story(self._call("GET", f"/v1/stories/{id}"))

    def story_events(self, id: str) -> Iterator[RemoteStory]:
        """The story each time it changes, until it is finished."""
        with self._open("GET", f"/v1/stories/{id}/events") as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    yield _story(json.loads(line[6:]))

    def get(self, id: str) -> RemoteVideo:
        """How a video stands."""
        return _video(self._call("GET", f"/v1/videos/{id}"))

    def list(self, show: str = "all", limit: int = 20, offset: int = 0) -> list[RemoteVideo]:
        """A page of videos, the latest first."""
        query = urllib.parse.urlencode({"show": show, "limit": limit, "offset": offset})
        return [_video(one) for one in self._call("GET", f"/v1/videos?{query}")["data"]]

    def cancel(self, id: str, *, keep: bool = True) -> RemoteVideo:
        """Give a video up; ``keep`` has the server decode what there is."""
        return _video(self._call("POST", f"/v1/videos/{id}/cancel?keep={str(keep).lower()}"))

    def delete(self, id: str) -> None:
        """Forget a video; its file goes into the server's trash."""
        self._call("DELETE", f"/v1/videos/{id}")

    def upload(self, path: Path | str) -> str:
        """Bring an image or a clip: the id that goes into ``image``, ``extend`` or ``control_video``, say."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="upload"\r\n\r\n'.encode()
        body = head + Path(path).read_bytes() + f"\r\n--{mark}--\r\n".encode()
        kept = self._call("POST", "/v1/files", body, f"multipart/form-data; boundary={mark}")
        return str(kept["id"])

    def events(self, id: str) -> Iterator[RemoteVideo]:
        """The video each time it changes, until it is finished."""
        with self._open("GET", f"/v1/videos/{id}/events") as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    yield _video(json.loads(line[6:]))

    def wait(self, id: str, on_change: Callable[[RemoteVideo], None] = lambda video: None) -> RemoteVideo:
        """Until the video is finished, however often the connection is lost.

        Raises:
            RequestError: it failed, or is no more.
        """
        while True:
            try:
                for video in self.events(id):
                    on_change(video)
            except (OSError, ValueError):  # it does not answer, or was cut off in the middle
                time.sleep(1)
            video = self.get(id)
            if video.finished:
                if not video.files:
                    raise RequestError(f"video {id} {video.state}: {video.error}")
                return video

    def download(self, id: str, path: Path | str, index: int = 0) -> Path:
        """Fetch a video's file, whole or not at all.

        Raises:
            OutputError: the place cannot be written, or a file is there already.
        """

        def write(partial: Path) -> None:
            with self._open("GET", f"/v1/videos/{id}/content?index={index}") as content, partial.open("wb") as file:
                shutil.copyfileobj(content, file)

        publish(Path(path), write, overwrite=False)
        return Path(path)

    def _call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        with self._open(method, path, data, kind) as answer:
            return json.load(answer)

    def _open(self, method: str, path: str, data: bytes | None = None, kind: str = "application/json") -> Any:
        headers = self._headers | ({"content-type": kind} if data is not None else {})
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            try:
                message = json.load(error)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = f"the server answered {error.code}"
            raise RequestError(message) from error
        except OSError as error:
            raise OutputError(f"{self._url} does not answer: {error}") from error


def _video(raw: dict[str, Any]) -> RemoteVideo:
    problem = (raw.get("error") or {}).get("message", "")
    return RemoteVideo(raw["id"], raw["status"], raw["state"], raw["progress"], raw["eta"], raw["prompt"],
                       len(raw["files"]), problem, raw)  # fmt: skip


def _story(raw: dict[str, Any]) -> RemoteStory:
    problem = (raw.get("error") or {}).get("message", "")
    return RemoteStory(raw["id"], raw["status"], raw["state"], raw["progress"], raw["eta"], raw["segment"],
                       len(raw["segments"]), raw["playable_seconds"], problem, raw)  # fmt: skip
