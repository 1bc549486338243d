"""Files of jobs: prompts a line, CSV, JSONL, and YAML with defaults and grids.

Every problem is reported with its line, all of them before anything is rendered.
"""

from __future__ import annotations

import csv
import difflib
import glob
import io
import itertools
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from radial.errors import RadialError, RequestError, explain
from radial.files import decode_text
from radial.models.lora_settings import adapter_file, check_adapter_file, parse_lora
from radial.request import GenerationRequest
from radial.shorthands import SHORTHANDS, spell_out
from radial.stories.fields import OF_STORIES, make_story
from radial.stories.request import StoryRequest
from radial.stories.script import Line, read_entries, read_story
from radial.yaml_file import load_yaml
from radial_app.jobs.finishing import check_no_files, finishing_after, read_finish
from radial_app.jobs.folder import data_folder
from radial_app.jobs.job import Job, Output, anchored, check_story_output, digest_of
from radial_app.jobs.lists.prompts import draw_words, expand_prompt, numbered_lines
from radial_app.jobs.presets import Presets

MAX_BYTES = 20_000_000
MAX_JOBS = 100_000
Make = Callable[[dict[str, Any]], GenerationRequest]
KINDS = (".txt", ".csv", ".jsonl", ".yaml", ".yml")
# What a row may say beside the fields of a request.
_OWN = ("lora", "output", "priority", "finish", "story", *OF_STORIES)
_FIELDS = (*GenerationRequest.model_fields, *SHORTHANDS, *_OWN)
_Row = tuple[int, dict[str, Any]]  # a line, and the values of the job that it is about


def check_fields(values: dict[str, Any], whose: str) -> None:
    """Raise RequestError for a field that jobs have not got."""
    if unknown := next((name for name in values if name not in _FIELDS), None):
        near = difflib.get_close_matches(unknown, _FIELDS, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(_FIELDS)}"
        raise RequestError(f"{whose}: unknown field {unknown!r}{hint}")


class JobFileError(RequestError):
    """A job file has errors: ``problems`` are lines such as ``jobs.csv:3: ...``."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")


def read_jobs(
    path: Path, *, output: Output, defaults: dict[str, Any] | None = None, batch: str = "",
    counts: dict[str, int] | None = None, warnings: list[str] | None = None, text: str | None = None,
    make: Make | None = None, most: int = MAX_JOBS, presets: Presets | None = None,
) -> list[Job]:  # fmt: skip
    """The jobs of a file, resolved and checked.

    Args:
        path: the file; its suffix tells its kind, and paths in it are relative to its folder.
        warnings: takes what looks like a slip and is none for certain.
        text: what it holds, where that was read already.
        output: where results go, unless a row has an ``output`` of its own.
        defaults: values of fields that a row leaves open.
        batch: name of the batch.
        counts: how often a digest came before, in other files.
        make: of lists from elsewhere, the request that a row's fields make, with files in place of the ids and names
            that they hold; nothing that lies beside the list is looked at then.
        most: jobs that it may have.
        presets: settings by name that rows may take which are not made elsewhere; this machine's user's when left out.

    Raises:
        JobFileError: with all problems.
    """
    folder = path.parent if make is None else None
    presets = presets or Presets(data_folder())
    text = _read(path) if text is None else text
    warnings = [] if warnings is None else warnings
    problems: list[str] = []
    rows, wildcards = _rows(path, text, problems)
    jobs: list[Job] = []
    counts = {} if counts is None else counts
    for line, given in rows:
        source = f"{path.name}:{line}"
        try:
            slips: list[str] = []
            for values in _expand({**(defaults or {}), **given}, folder, wildcards, slips, most):
                if len(jobs) >= most:
                    raise RequestError(_too_many(most))
                lines = _lines(values)
                written = _written(values, lines, path.parent, presets, make)
                story = None if lines is None else _story(values, lines, written)
                job = _make_job(values, written, story, output, batch, source, len(jobs) + 1, folder)
                again = counts[job.digest] = counts.get(job.digest, -1) + 1
                if again:
                    job = replace(job, digest=digest_of(written, job.output, again, story, job.finish))
                jobs.append(job)
            warnings += [f"{source}: {slip}" for slip in dict.fromkeys(slips)]
        except ValidationError as error:
            problems += [f"{source}: {explain(problem)}" for problem in error.errors()]
        except RadialError as error:
            problems.append(f"{source}: {error}")
        if len(problems) > 100:
            break
    if not problems and not jobs:
        problems.append(f"{path.name}: no jobs in it")
    if problems:
        raise JobFileError(sorted(problems, key=_line))
    return jobs


def _line(problem: str) -> int:
    match = re.match(r"[^:]*:(\d+):", problem)
    return int(match[1]) if match else 0


def _read(path: Path) -> str:
    if path.suffix.lower() not in KINDS:
        raise JobFileError([f"{path}: job files end in {', '.join(KINDS)}"])
    try:
        # Without waiting: a pipe that nobody writes to would never open.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise JobFileError([f"{path}: is no file"])
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise JobFileError([f"{path}: larger than {MAX_BYTES // 1_000_000} MB"])
    except OSError as error:
        raise JobFileError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    try:
        return decode_text(content)
    except ValueError as error:
        raise JobFileError([f"{path}: {error}"]) from error


def _rows(path: Path, text: str, problems: list[str]) -> tuple[list[_Row], dict[str, list[str]]]:
    kind = path.suffix.lower()
    if kind == ".txt":
        return [(number, {"prompt": line}) for number, line in numbered_lines(text)], {}
    if kind == ".csv":
        return list(_csv_rows(path, text, problems)), {}
    if kind == ".jsonl":
        return list(_json_rows(path, text, problems)), {}
    return _yaml_rows(path, text, problems)


def _csv_rows(path: Path, text: str, problems: list[str]) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text), strict=True, skipinitialspace=True)
    try:
        unknown = [name for name in reader.fieldnames or [] if name not in _FIELDS]
        if unknown:
            hint = "columns are separated by commas" if ";" in unknown[0] else f"known are {', '.join(_FIELDS)}"
            problems.append(f"{path.name}:1: unknown column {unknown[0]!r}; {hint}")
            return
        for values in reader:
            line = reader.line_num
            if None in values:
                problems.append(f"{path.name}:{line}: more values than columns")
                continue
            filled = {name: value for name, value in values.items() if value not in (None, "")}
            for name in ("lora", "references", "keyframes"):
                if name in filled:
                    filled[name] = [part.strip() for part in filled[name].split(";") if part.strip()]
            yield line, filled
    except csv.Error as error:
        problems.append(f"{path.name}:{reader.line_num}: {error}")


def _json_rows(path: Path, text: str, problems: list[str]) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path.name}:{number}: no JSON: {getattr(error, 'msg', error)}")
            continue
        if not isinstance(values, dict):
            problems.append(f"{path.name}:{number}: an object with fields is expected, not {type(values).__name__}")
            continue
        yield number, values


def _yaml_rows(path: Path, text: str, problems: list[str]) -> tuple[list[_Row], dict[str, list[str]]]:
    """``defaults``, ``grid`` and ``wildcards`` for all, and a list of ``jobs``; or the list alone."""
    try:
        content, root = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problems.append(f"{path.name}{line}: no YAML: {getattr(error, 'problem', None) or error}")
        return [], {}
    if isinstance(content, list):
        content, nodes = {"jobs": content}, {}
        lines = [node.start_mark.line + 1 for node in root.value]
    elif isinstance(content, dict):
        nodes = {key.value: value for key, value in root.value}
        found = nodes.get("jobs")
        lines = [node.start_mark.line + 1 for node in found.value] if isinstance(found, yaml.SequenceNode) else []
    else:
        problems.append(f"{path.name}:1: a list of jobs is expected, or a mapping with jobs")
        return [], {}
    known = ("defaults", "grid", "wildcards", "jobs")
    if unknown := [str(key) for key in content if key not in known]:
        problems.append(f"{path.name}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
        return [], {}
    parts = {name: content.get(name) or {} for name in ("defaults", "grid", "wildcards")}
    for name, part in parts.items():
        if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
            problems.append(f"{path.name}: {name} must be a mapping")
            return [], {}
    for name in ("defaults", "grid"):
        try:
            check_fields(parts[name], name)
        except RequestError as error:
            problems.append(f"{path.name}:{nodes[name].start_mark.line + 1}: {error}")
            parts[name] = {}
    jobs = content.get("jobs")
    if not isinstance(jobs, list):
        problems.append(f"{path.name}: jobs must be a list")
        return [], {}
    rows = []
    for line, job in zip(lines, jobs, strict=True):
        values = {"prompt": job} if isinstance(job, str) else job
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            problems.append(f"{path.name}:{line}: a prompt or a mapping with fields is expected")
            continue
        own = values.get("grid") or {}
        grid = {**parts["grid"], **own} if isinstance(own, dict) else own
        rows.append((line, {**parts["defaults"], **values, "grid": grid}))
    wildcards: dict[str, list[str]] = {}
    for name, given in parts["wildcards"].items():
        options = given if isinstance(given, list) else [given]
        wildcards[name] = [str(option).lower() if isinstance(option, bool) else str(option) for option in options]
        if not options or not all(isinstance(option, (str, int, float)) for option in options):
            problems.append(f"{path.name}: the wildcard {name} must be a list of words")
    return rows, wildcards


def _expand(
    values: dict[str, Any], folder: Path | None, wildcards: dict[str, list[str]], warnings: list[str], most: int
) -> Iterator[dict[str, Any]]:
    """One row's jobs: the product of its grid, of the choices in its prompt, and of the files its image names in a
    folder."""
    grid = values.pop("grid", None) or {}
    if not isinstance(grid, dict) or not all(isinstance(name, str) for name in grid):
        raise RequestError(f"grid must be a mapping of fields to lists, not {grid!r}")
    check_fields(values | grid, "the job")
    axes = [(name, options if isinstance(options, list) else [options]) for name, options in grid.items()]
    images = values.get("image")
    if folder is not None and isinstance(images, str) and glob.has_magic(images) and not (folder / images).exists():
        found = sorted(glob.glob(images, root_dir=folder, recursive=True))
        if not found:
            raise RequestError(f"no image matches {images!r} in {folder}")
        axes.append(("image", found))
    if math.prod(len(options) for _, options in axes) > most:  # before any of them costs anything
        raise RequestError(_too_many(most))
    for combination in itertools.product(*(options for _, options in axes)):
        chosen = values | dict(zip((name for name, _ in axes), combination, strict=True))
        then = chosen.get("then") or ()
        for text in (then,) if isinstance(then, str) else then:
            if isinstance(text, str) and len(list(expand_prompt(text, wildcards, warnings))) > 1:
                raise RequestError(f"then takes no choices, such as {text[:60]!r} has: write a job for each")
        prompt = chosen.get("prompt")
        if not isinstance(prompt, str):
            yield chosen
            continue
        for text in expand_prompt(prompt, wildcards, warnings):
            yield chosen | {"prompt": draw_words(text, wildcards, folder, str(chosen.get("seed", "")))}


def _too_many(most: int) -> str:
    return f"more than {most:,} jobs; split the file"


def _named(output: Output, name: Any) -> Output:
    """An output of another name, whose suffix, if it has one, says the format."""
    fields = output.model_dump() | {"name": name}
    for suffix in (".mp4", ".webm", ".gif"):
        if isinstance(name, str) and name.lower().endswith(suffix):
            fields["name"] = name[: -len(suffix)]
            if suffix != output.encoding.suffix:
                fields["encoding"] = {"format": suffix[1:], "metadata": output.encoding.metadata}
    return Output.model_validate(fields)


def _lines(values: dict[str, Any]) -> tuple[Line, ...] | None:
    """The lines of a story, where a job is one: a text of a line a prompt, or a list."""
    if "story" not in values:
        if of_story := next((name for name in OF_STORIES if name in values), None):
            raise RequestError(f"{of_story} is of a story, and this is a clip: leave it out, or give story")
        return None
    if "prompt" in values:
        raise RequestError("story and prompt say the same: give one of them")
    story = values["story"]
    if isinstance(story, str):
        return read_story(story)
    if not isinstance(story, list):
        raise RequestError(f"story must be a list of prompts, or text with a prompt a line, not {story!r:.100}")
    return read_entries(story, what="story line")


def _story(values: dict[str, Any], lines: tuple[Line, ...], written: GenerationRequest) -> StoryRequest:
    own = {name: values[name] for name in ("seconds", *OF_STORIES) if name in values}
    return make_story(lines, written.model_dump(exclude={"prompt"}, exclude_unset=True) | own)


def _written(
    values: dict[str, Any], lines: tuple[Line, ...] | None, folder: Path, presets: Presets, make: Make | None
) -> GenerationRequest:
    """The request of one job as it is written; of a story, of its first line."""
    if lines is not None:
        values = {name: value for name, value in values.items() if name != "seconds"} | {"prompt": lines[0].prompt}
    if "prompt" not in values:
        raise RequestError('prompt is missing; say what the clip shows, for example "a red circle rises"')
    fields = {name: value for name, value in values.items() if name not in _OWN}
    if "lora" in values:
        given = values["lora"] if isinstance(values["lora"], list) else [values["lora"]]
        is_name = make is not None
        fields["loras"] = [parse_lora(one, is_name=is_name) if isinstance(one, str) else one for one in given]
    if make is not None:
        return make(fields)
    return anchored(GenerationRequest.model_validate(spell_out(presets.apply(fields))), folder)


def _make_job(
    values: dict[str, Any], written: GenerationRequest, story: StoryRequest | None, output: Output, batch: str,
    source: str, index: int, folder: Path | None,
) -> Job:  # fmt: skip
    if "output" in values:
        output = _named(output, values["output"])
    finish = None
    if values.get("finish"):
        what = read_finish(values["finish"])
        if folder is None:
            check_no_files(what)
        finish = finishing_after(what, output.encoding, folder)
    if story is not None:
        check_story_output(output)
    priority = values.get("priority", 0)
    try:
        priority = int(priority)
    except (TypeError, ValueError):
        raise RequestError(f"priority must be a whole number, not {priority!r}") from None
    written.check_files(by_head=folder is None)  # what comes from elsewhere is read by the worker alone
    for lora in written.loras:
        check_adapter_file(adapter_file(lora.path))
    request = written.resolve() if story is None else story.request
    job = Job(
        id="", request=request, story=story, output=output, batch=batch, source=source, index=index, priority=priority,
        digest=digest_of(written, output, story=story, finish=finish), finish=finish,
    )  # fmt: skip
    output.path(job.name_values(request, 0))
    return job
