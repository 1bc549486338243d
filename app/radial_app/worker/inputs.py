"""The files that a request names, on their way to another machine."""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import tempfile
from pathlib import Path

from radial.errors import OutputError, RequestError
from radial.input_files import named_files, with_files
from radial.request import GenerationRequest


def pack_inputs(request: GenerationRequest) -> dict[str, bytes]:
    """The files that a request names, by path: another machine has not got them.

    Raises:
        RequestError: one cannot be read.
    """
    paths = [path for _, path in named_files(request.model_dump())]
    paths += [lora.path for lora in request.loras if not lora.path.startswith("bundled:")]
    try:
        return {path: Path(path).read_bytes() for path in paths}
    except OSError as error:
        raise RequestError(f"cannot read {error.filename}: {error.strerror}") from error


def unpack_inputs(request: GenerationRequest, inputs: dict[str, bytes]) -> GenerationRequest:
    """Write a request's files here, at the same place on every machine, so that a snapshot fits whoever takes it up."""
    places = {}
    for path, content in inputs.items():
        ours = Path(tempfile.gettempdir()) / f"radial-inputs-{getpass.getuser()}"
        ours.mkdir(mode=0o700, exist_ok=True)
        if ours.stat().st_uid != os.getuid() or ours.stat().st_mode & 0o077:
            raise OutputError(f"{ours} is open to others; remove it")
        folder = ours / hashlib.sha256(content).hexdigest()[:32]
        folder.mkdir(exist_ok=True)
        place = folder / Path(path).name
        if not place.exists():
            partial = folder / f".{secrets.token_hex(4)}"
            partial.write_bytes(content)
            partial.replace(place)
        places[path] = str(place)
    changes = with_files(request.model_dump(), lambda _, given: places[given])
    loras = [lora.model_dump() | {"path": places.get(lora.path, lora.path)} for lora in request.loras]
    return request.with_values(**changes, loras=loras, device="auto")
