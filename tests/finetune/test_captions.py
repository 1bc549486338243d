"""Several captions for one clip: where they are read, how tags vary, and that each step draws one of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_files import CUT
from PIL import Image

from radial import RequestError
from radial.loading.load import LoadedModel
from radial_finetune.data.cache import read_clip, read_index
from radial_finetune.data.captions import MOST_CAPTIONS, TagVariants
from radial_finetune.data.prepare import encode_texts, prepare
from radial_finetune.data.sources import find_sources
from radial_finetune.objective import find_objective
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config


def put(folder: Path, name: str, **texts: str) -> None:
    """A picture, and texts beside it by what stands between its name and ``.txt``."""
    Image.new("RGB", (32, 32), (90, 20, 160)).save(folder / f"{name}.png")
    for number, text in texts.items():
        (folder / f"{name}{number.replace('_', '.')}.txt").write_text(text)


def captions_in(folder: Path, **how: bool) -> dict[str, tuple[str, ...]]:
    return {source.name: source.captions for source in find_sources(folder, **how)}


def test_captions_are_lines_and_numbered_files(tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text("a fox\r\n\r\n  a red fox \na fox\n")
    put(tmp_path, "fox", _2="twice", _10="ten times", _1="once")
    put(tmp_path, "hare", _1="a hare")
    put(tmp_path, "fox.3")  # whose text is not the fox's third
    (tmp_path / "fox.3.txt").write_text("the third fox")
    (tmp_path / "fox.notes.txt").write_text("of no use")
    assert captions_in(tmp_path) == {
        "fox.3.png": ("the third fox",),
        "fox.png": ("a fox", "a red fox", "once", "twice", "ten times"),
        "hare.png": ("a hare",),
    }
    assert captions_in(tmp_path, whole_captions=True)["fox.png"] == (
        "a fox\r\n\r\n  a red fox \na fox", "once", "twice", "ten times"
    )  # fmt: skip
    (tmp_path / "hare.1.txt").write_text(" \n")
    with pytest.raises(RequestError, match=r"the caption .*hare\.1\.txt is empty"):
        find_sources(tmp_path)


def test_captions_are_lists_in_tables(tmp_path: Path) -> None:
    for name in "abcd":
        put(tmp_path, name)
    rows: list[dict[str, Any]] = [
        {"file": "a.png", "captions": ["one", "two"]}, {"file": "b.png", "caption": ["three", "four\nfive"]},
        {"file": "c.png", "text": "six"}, {"file": "d.png", "captions": [1], "prompt": "seven"},
    ]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(captions_in(tmp_path).values()) == [("one", "two"), ("three", "four", "five"), ("six",), ("seven",)]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file": "a.png", "captions": []}))
    with pytest.raises(RequestError, match="row 1, must have a file and a caption"):
        find_sources(tmp_path)


def test_too_many_captions_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a")
    (tmp_path / "a.txt").write_text("\n".join(f"line {number}" for number in range(MOST_CAPTIONS + 1)))
    with pytest.raises(RequestError, match=r"a\.txt: 65 captions for one clip, and 64 are most; --whole-captions"):
        find_sources(tmp_path)
    assert len(captions_in(tmp_path, whole_captions=True)["a.png"]) == 1


def test_tags_vary_the_same_way_again() -> None:
    tags = "trig, " + ", ".join(f"tag{number}" for number in range(20))
    vary = TagVariants(8, dropout=0.25, keep=1, seed=3)
    found = vary.of((tags,))
    assert found == vary.of((tags,))
    assert found != replace(vary, seed=4).of((tags,))
    assert found[0] == tags
    assert len(set(found)) == 8
    words = [one.split(", ") for one in found]
    assert all(one[0] == "trig" and len(set(one)) == len(one) for one in words)
    assert all(set(one) <= set(words[0]) for one in words)
    assert 100 < sum(len(one) - 1 for one in words[1:]) < 110  # about three quarters of 140
    assert any(one[1:] != sorted(one[1:], key=words[0].index) for one in words[1:])
    assert TagVariants(8).of(("a fox in the snow", "a red fox")) == ("a fox in the snow", "a red fox")
    with pytest.raises(RequestError, match="128 captions for one clip"):
        TagVariants(64).of((tags, tags[::-1]))


@pytest.fixture(scope="module")
def told(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three pictures with one, two and three captions."""
    folder: Path = tmp_path_factory.mktemp("told")
    for number, texts in enumerate(("one", "two\nzwei", "three\ndrei\ntrois")):
        put(folder, f"{number}")
        Image.new("RGB", (32, 32), (80 * number, 20, 160)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(texts)
    prepare(find_sources(folder), folder / "cache", model, CUT, batch_size=2)
    return folder / "cache"


def test_every_caption_is_encoded(told: Path, model: LoadedModel) -> None:
    index = read_index(told)
    assert [clip.captions for clip in index.clips] == [("one",), ("two", "zwei"), ("three", "drei", "trois")]
    objective = find_objective(model.pipe, model.spec)
    for clip in index.clips:
        for number, caption in enumerate(clip.captions):
            text = read_clip(told, clip, number)[1]
            want = encode_texts(objective, [caption])[0]
            assert text.keys() == want.keys()
            assert all(torch.equal(text[name], want[name]) for name in want), caption
    report = json.loads((told / "report.json").read_text())
    assert "2 clips have 2.5 captions: each step draws one" in report["notes"]


def test_each_step_draws_a_caption(told: Path, model: LoadedModel) -> None:
    """Of three about a third of the times each, the same for any number of processes and from any step on."""
    index, objective = read_index(told), find_objective(model.pipe, model.spec)
    config = make_config(data=str(told), output="", steps=90, batch_size=2, caption_dropout=0)
    batches = Batches(config, index, objective)
    known = {
        objective.stack_text([read_clip(told, clip, number)[1]])["prompt_embeds"][0].numpy().tobytes(): caption
        for clip in index.clips
        for number, caption in enumerate(clip.captions)
    }
    drawn = [[known[text.numpy().tobytes()] for text in b.text["prompt_embeds"]] for b in batches.iterate(0)]
    counts = Counter(caption for captions in drawn for caption in captions)
    assert counts["one"] == 60  # every clip once an epoch
    assert counts["two"] + counts["zwei"] == counts["three"] + counts["drei"] + counts["trois"] == 60
    assert min(counts.values()) > 12
    for number in (0, 41):
        assert torch.equal(
            batches.read(number).text["prompt_embeds"],
            Batches(config, index, objective).read(number).text["prompt_embeds"],
        )
    single = config.model_copy(update={"batch_size": 1})
    parts = [Batches(single, index, objective, rank, 2).read(7).text["prompt_embeds"] for rank in range(2)]
    assert torch.equal(torch.cat(parts), batches.read(7).text["prompt_embeds"])
    others = Batches(config.model_copy(update={"seed": 1}), index, objective)
    assert [batches.read(n).sigma.tolist() for n in range(3)] != [others.read(n).sigma.tolist() for n in range(3)]


def test_captions_do_not_change_what_else_is_drawn(told: Path, model: LoadedModel) -> None:
    """Noise, its level and the order of clips are those of the same clips with one caption."""
    index, objective = read_index(told), find_objective(model.pipe, model.spec)
    plain = replace(index, clips=tuple(replace(clip, others=()) for clip in index.clips))
    config = make_config(data=str(told), output="", steps=9)
    for one, two in zip(
        Batches(config, index, objective).iterate(0), Batches(config, plain, objective).iterate(0), strict=True
    ):
        assert torch.equal(one.latents, two.latents)
        assert torch.equal(one.noise, two.noise)
        assert torch.equal(one.sigma, two.sigma)
