"""A film grows piece by piece, plays at any time, goes on bit for bit, and says what it is."""

from __future__ import annotations

import errno
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from tiny_pipelines import CASES

from radial import GenerationError, ModelError, OutputError, RequestError
from radial.generation.pipeline import describe_run
from radial.loading.load import LoadedModel, load
from radial.request import make_request
from radial.stories.decoding import ChunkDecoder
from radial.stories.film import Made, make_film
from radial.stories.request import StoryRequest, make_story_request, read_told
from radial.stories.script import Line, lines_told, looks_in, read_entries, read_story, read_story_file, read_story_yaml
from radial.stories.state import FilmState, Piece, state_folder
from radial.stories.windows import Windows, held
from radial.video.clip import read_frames, read_receipt
from radial.video.film import GrowingFilm, finish_film

STORY = "anna: a red star rises\n0.6s anna: spins\n# cut\nben: a blue ring falls"


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> LoadedModel:
    return load(make_request(prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, seed=0))


def request_of(folder: Path, text: str = STORY, *, causal: bool = True, **changes: Any) -> StoryRequest:
    fields = {"model": str(folder), "height": 32, "width": 32, "fps": 16, "seed": 4, "num_inference_steps": 2}
    memory = {"chunk_frames": 1, "window_frames": 2} if causal else None
    return make_story_request(read_story(text), fields | changes, seconds=0.3, memory=memory, causal=causal)


def drawn(count: int, first: int = 0, height: int = 48, width: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    frames = np.zeros((count, height, width, 3), np.uint8)
    for index in range(count):
        frames[index, :, (2 * (first + index)) % (width - 8) :][:, :8] = (250, 90, 20)
    return frames


@pytest.mark.parametrize(("fps", "height"), [(16, 48), (25, 33)])
def test_a_growing_film_plays_after_each_part(tmp_path: Path, fps: int, height: int) -> None:
    path, made = tmp_path / "film.mp4", [drawn(17, 0, height), drawn(16, 17, height), drawn(3, 33, height)]
    film, sizes = GrowingFilm(path, fps), []
    for number, part in enumerate(made):
        sizes.append(film.append(part))
        seen = read_frames(path)
        whole = np.concatenate(made[: number + 1])
        assert seen.shape == whole.shape
        assert np.abs(seen.astype(int) - whole).mean() < 3
    film.close()
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert np.allclose(times, np.arange(36) / fps)

    # What was never finished is cut off, and the same parts make the same bytes.
    whole_film = path.read_bytes()
    path.write_bytes(whole_film[: sizes[1]] + b"torn")
    again = GrowingFilm(path, fps, size=sizes[1], frames=33)
    again.append(made[2])
    again.close()
    assert path.read_bytes() == whole_film

    finish_film(path, tmp_path / "whole.mp4", {"radial": "1", "story": "é"}, overwrite=False)
    assert np.array_equal(read_frames(tmp_path / "whole.mp4"), read_frames(path))
    assert read_receipt(tmp_path / "whole.mp4")["story"] == "é"
    with pytest.raises(OutputError, match="cut short"):
        GrowingFilm(path, fps, size=len(whole_film) + 1)


def test_a_full_disk_leaves_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = GrowingFilm(tmp_path / "film.mp4", 16)
    size = film.append(drawn(5))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            film.append(drawn(5, 5))
    assert film.path.stat().st_size == size
    assert len(read_frames(film.path)) == 5
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
    try:
        with pytest.raises(OutputError, match="too large"):
            film.append(drawn(5, 5))
        film.close()  # has nothing left to write
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    film = GrowingFilm(film.path, 16, size=size, frames=5)
    film.append(drawn(4, 5))
    assert len(read_frames(film.path)) == 9


def test_frames_decoded_in_parts_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
                           latents_mean=[0.1] * 4, latents_std=[0.5, 1.0, 1.5, 2.0]).eval()  # fmt: skip
    latents = torch.randn(4, 40, 4, 4)
    whole = ChunkDecoder(vae).decode(latents)
    parts = ChunkDecoder(vae)
    cut = [parts.decode(latents[:, a:b]) for a, b in ((0, 3), (3, 4), (4, 11), (11, 40))]
    assert np.array_equal(np.concatenate(cut), whole)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        stock = vae.decode(latents[None] * std + mean).sample[0].permute(1, 2, 3, 0)
    assert np.abs(whole - (stock.numpy() + 1) * 127.5).max() <= 0.51

    later = ChunkDecoder(vae)  # taken up: what lies farther back than it remembers does not count
    assert later.remembers < 36
    later.decode(latents[:, 36 - later.remembers : 36])
    assert np.array_equal(later.decode(latents[:, 36:]), whole[-2 * 4 :])
    with pytest.raises(ModelError, match="does not decode a film part by part"):
        ChunkDecoder(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("causal", [True, False])
def test_a_film_that_was_stopped_goes_on_bit_for_bit(
    tmp_path: Path, wan_folder: Path, model: LoadedModel, causal: bool
) -> None:
    story = request_of(wan_folder, causal=causal)
    made: list[Made] = []
    whole = make_film(story, tmp_path / "whole.mp4", model=model, on_made=made.append)
    assert [one.segment for one in made] == sorted(one.segment for one in made)
    assert made[-1].segment == 2

    class KilledError(BaseException):
        pass

    def kill(one: Made) -> None:
        if one.piece == 1:
            raise KilledError

    stopped = tmp_path / "stopped.mp4"
    with pytest.raises(KilledError):
        make_film(story, stopped, model=model, on_made=kill)
    assert not stopped.exists()
    growing = state_folder(stopped) / "film.mp4"
    assert len(read_frames(growing)) == round(made[1].seconds * 16)
    growing.write_bytes(growing.read_bytes() + b"half a part")
    again: list[Made] = []
    make_film(story, stopped, model=model, on_made=again.append)
    assert [one.taken_up for one in again] == [True, True] + [False] * (len(made) - 2)
    assert growing.read_bytes() == (state_folder(whole) / "film.mp4").read_bytes()

    # Of a film whose first piece cannot be read, none of the others counts again after the next kill.
    if not causal:
        (state_folder(whole) / "pieces" / "000000.safetensors").write_bytes(b"torn")

        def kill_at_once(one: Made) -> None:
            assert (one.piece, one.taken_up) == (0, False)
            raise KilledError

        with pytest.raises(KilledError):
            make_film(story, whole, model=model, overwrite=True, on_made=kill_at_once)
        assert len(list(FilmState(state_folder(whole)).pieces())) == 1
        make_film(story, whole, model=model, overwrite=True)
    assert growing.read_bytes() == (state_folder(whole) / "film.mp4").read_bytes()

    receipt = read_receipt(whole)
    told = read_told(receipt)
    assert told.digest("") == story.digest("")
    assert told.lines == story.lines
    times = [(line["begin"], line["end"]) for line in receipt["story"]["lines"]]
    assert times[0][0] == 0.0
    assert [end for _, end in times[:-1]] == [begin for begin, _ in times[1:]]
    assert times[-1][1] == len(read_frames(whole)) / 16
    assert receipt["story"]["way"] == ("chunks" if causal else "windows")

    # It grows with its story, and what was made before stays.
    longer = story.with_lines((*story.lines, *read_story("anna: rises", {"anna": None})))
    make_film(longer, whole, model=model, overwrite=True)
    assert len(read_frames(whole)) > len(read_frames(stopped))
    assert (state_folder(whole) / "film.mp4").read_bytes().startswith(growing.read_bytes())

    # Another line is another film from there on.
    other = request_of(wan_folder, STORY.replace("spins", "falls"), causal=causal)
    with pytest.raises(RequestError, match="another story or other settings, from segment 2 on"):
        make_film(other, tmp_path / "new.mp4", model=model, folder=state_folder(whole))
    # Nor is one taken up that was made in another way; replacing the output is no leave to make it anew.
    pieces = sorted((state_folder(whole) / "pieces").iterdir())
    for changed, problem in (
        (replace(model, fingerprint="0"), r"from segment 1 on \(weights: not as it was\)"),
        (replace(model, device=torch.device("cuda")), r"\(device was cpu and is cuda: not"),
        (replace(model, loras=({"name": "a", "fingerprint": "b"},)), r"\(adapters: not"),
    ):
        with pytest.raises(RequestError, match=problem):
            make_film(longer, whole, model=changed, overwrite=True)
    assert sorted((state_folder(whole) / "pieces").iterdir()) == pieces

    anew: list[Made] = []
    make_film(other, tmp_path / "new.mp4", model=model, folder=state_folder(whole), anew=True, on_made=anew.append)
    assert {one.segment for one in anew if one.taken_up} == {0}


def test_what_is_kept_of_another_film_is_never_made_anew(tmp_path: Path, wan_folder: Path, model: LoadedModel) -> None:
    story, base, notes = request_of(wan_folder), FilmState(tmp_path / "base.story"), list[str]()

    def make(name: str, wanted: StoryRequest, model: LoadedModel = model, **more: Any) -> list[Made]:
        made: list[Made] = []
        make_film(wanted, tmp_path / name, model=model, anew=True, overwrite=True, on_made=made.append,
                  on_event=lambda event: notes.append(event.note), **more)  # fmt: skip
        return made

    other = replace(model, fingerprint="0")
    with pytest.raises(RequestError, match=r"base.story, is not there any more"):
        make("gone.mp4", story, base=base)
    assert not base.folder.exists()
    make("base.mp4", story, folder=base.folder)
    longer = story.with_lines((*story.lines[:2], replace(story.lines[2], seed=9)))
    made = make("longer.mp4", longer, base=base)
    assert [one.taken_up for one in made] == [one.segment < 2 for one in made]
    assert not any("anew" in note for note in notes)
    pieces = [file.stat().st_mtime_ns for file in sorted((state_folder(tmp_path / "longer.mp4") / "pieces").iterdir())]

    # So it is at the next attempt, whose weights are others.
    with pytest.raises(RequestError, match=r"from segment 1 on \(weights: not as it was\); a film goes on only as"):
        make("longer.mp4", longer, other, base=base)
    assert pieces == [
        file.stat().st_mtime_ns for file in sorted((state_folder(tmp_path / "longer.mp4") / "pieces").iterdir())
    ]
    # Of a story of its own it is made anew, and said.
    assert not any(one.taken_up for one in make("base.mp4", story, other, folder=base.folder))
    assert "4 finished parts are made anew, from segment 1 on (weights: not as it was)" in notes
    base.film.unlink()
    with pytest.raises(RequestError, match=r"base.story, is not there any more"):
        make("gone.mp4", story, base=base)


def test_a_memory_that_is_changed_makes_the_film_anew_from_what_reads_it(
    tmp_path: Path, wan_folder: Path, model: LoadedModel
) -> None:
    lines = [f"0.25s {what} rises" for what in ("a star", "a ring", "a cube", "a ball", "a cone", "a heart")]
    quick: dict[str, Any] = {"num_inference_steps": 1}
    story, film = request_of(wan_folder, "\n".join(lines), **quick), tmp_path / "film.mp4"
    assert story.count() == 6

    def last_latents() -> torch.Tensor:
        return list(FilmState(state_folder(film)).pieces())[-1].tensors["latents"]

    took, usual = read_receipt(make_film(story, film, model=model))["seconds"]["film"], last_latents()
    straight = (state_folder(film) / "film.mp4").read_bytes()
    assert took == pytest.approx(sum(piece.seconds for piece in FilmState(state_folder(film)).pieces()), abs=2e-3)

    def remembered(**said: Any) -> StoryRequest:
        told = [(line, said.get(f"of_{number}")) for number, line in enumerate(lines, 1)]
        text = "\n".join(f"# remember: {how}\n{line}" if how else line for line, how in told)
        return request_of(wan_folder, text, **quick)

    def make(wanted: StoryRequest) -> tuple[set[int], list[str]]:
        made, notes = list[Made](), list[str]()
        make_film(wanted, film, model=model, overwrite=True, anew=True, on_made=made.append,
                  on_event=lambda event: notes.append(event.note))  # fmt: skip
        return {one.segment + 1 for one in made if not one.taken_up}, [note for note in notes if "anew" in note]

    # A window of two frames: 2 is remembered from 5 on, as the newest, and 1 from 4 on. Pinned, 2 stays nearest in 6.
    assert remembered(of_2="pin").lines[1].remember == "pin"
    for said, first in (({"of_2": "pin"}, 6), ({"of_1": "drop"}, 4), ({"of_2": 4}, 5)):
        wanted = remembered(**said)
        assert wanted.alike_until(story.told()) == first - 1
        with pytest.raises(RequestError, match=rf"another story or other settings, from segment {first} on"):
            make_film(wanted, film, model=model, overwrite=True)
        anew, notes = make(wanted)
        assert anew == set(range(first, 7))
        assert f"from segment {first} on: what is remembered there is not as it was" in notes[0]
        growing = (state_folder(film) / "film.mp4").read_bytes()
        assert not torch.equal(last_latents(), usual), "it counts"
        other = make_film(wanted, tmp_path / f"from-{first}.mp4", model=model)
        assert (state_folder(other) / "film.mp4").read_bytes() == growing, "as if it had been so from the beginning"
        told = read_told(read_receipt(film))
        assert told.lines == wanted.lines
        assert told.plan() == wanted.plan() != story.plan()
        assert make(story)[0] == set(range(first, 7))
        assert (state_folder(film) / "film.mp4").read_bytes() == straight
    # Where the cache is read sparsely, what is pinned is read whole: that counts from where it is remembered at all.
    sparse = replace(remembered(of_2="pin"), read_decay=0.2)
    assert (min(remembered(of_2="pin").unusual_reads()), min(sparse.unusual_reads())) == (5, 4)
    # What is read by nobody changes nothing.
    assert make(remembered(of_5="pin", of_6="drop"))[0] == set()

    # Its time is that of all its parts, whenever they were made.
    assert read_receipt(film)["seconds"]["film"] == pytest.approx(
        sum(piece.seconds for piece in FilmState(state_folder(film)).pieces()), abs=2e-3
    )
    with pytest.raises(RequestError, match="line 2 says how it is remembered, and this story is made window by window"):
        request_of(wan_folder, "a star\n# remember: pin\na ring", causal=False)
    with pytest.raises(RequestError, match="segment 2 is remembered as segment 9, and the story has 2"):
        request_of(wan_folder, "a star\n# remember: 9\na ring")


def test_a_model_that_knows_no_names_is_told_a_window_s_line_without_them(
    wan_folder: Path, tmp_path: Path, model: LoadedModel
) -> None:
    unread = replace(model, spec=replace(model.spec, reads_names=False))

    def frames(line: str, by: LoadedModel) -> Any:
        return Windows(request_of(wan_folder, f"0.25s {line}", causal=False), by, tmp_path).make(0, lambda step: None)[
            0
        ]

    bare = frames("a red star rises", model)
    assert (frames("anna: a red star rises", unread) == bare).all()
    assert (frames("anna: a red star rises", model) != bare).any()


def test_a_window_holds_the_frames_that_it_goes_on_from(
    wan_folder: Path, tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = request_of(wan_folder, "0.25s a red star rises\n0.25s it spins\n0.25s it falls", causal=False)
    assert short.pieces() == ((0, 1), (1, 1), (2, 1))
    assert [short.ends(count) for count in range(4)] == [(), (5,), (5, 9), (5, 9, 13)]
    maker, known = Windows(short, model, tmp_path), []

    def spy(transformers: Any, latents: torch.Tensor) -> Any:
        known.append(latents)
        return held(transformers, latents)

    monkeypatch.setattr("radial.stories.windows.held", spy)
    made = [maker.make(piece, lambda step: None) for piece in range(3)]
    assert [len(frames) for frames, _ in made] == [5, 4, 4]
    vae = model.pipe.vae
    mean, std = (torch.tensor(one).view(-1, 1, 1, 1) for one in (vae.config.latents_mean, vae.config.latents_std))
    for piece in (1, 2):
        before = made[piece - 1][1]["frames"]
        assert torch.equal(before[-4:], torch.from_numpy(made[piece - 1][0][-4:].copy()))
        assert len(before) == 5
        with torch.no_grad():
            clean = vae.encode((before.permute(3, 0, 1, 2)[None] / 127.5 - 1).to(vae.dtype)).latent_dist.mode()[0]
        assert known[piece - 1].shape[2] == 2
        assert torch.allclose(known[piece - 1][0], ((clean - mean) / std).float(), atol=1e-4)
    maker.restore(0, {"frames": torch.zeros(4, 32, 32, 3, dtype=torch.uint8)}, 1)
    with pytest.raises(GenerationError, match="4 frames are there to go on from, not 5"):
        maker.make(1, lambda step: None)

    story = request_of(wan_folder, causal=False)
    windows = story.pieces()
    assert [segment for segment, _ in windows] == [0, 1, 2]
    assert windows[0][1] == 1
    long = request_of(wan_folder, "20s a red star rises\n1s it falls", causal=False)
    assert sum(latents for segment, latents in long.pieces() if segment == 0) == 80
    assert 4 * max(latents for _, latents in long.pieces()) < long.native_frames
    assert [long.segment_at(count) for count in (0, long.count() - 2, long.count() - 1, long.count())] == [0, 0, 1, 1]
    for story in (long, request_of(wan_folder)):  # however many are there, it says what they make
        frames = [4 * latents for _, latents in story.pieces()]
        assert [story.ends(count)[-1] for count in range(1, story.count() + 1)] == [
            1 + sum(frames[:count]) for count in range(1, story.count() + 1)
        ]


def test_a_film_from_an_image_is_of_what_that_image_holds(tmp_path: Path) -> None:
    CASES["wan-i2v"].build().save_pretrained(tmp_path / "model")
    start, film = tmp_path / "start.png", tmp_path / "film.mp4"
    Image.new("RGB", (96, 64), "teal").save(start)
    story = make_story_request(
        read_story("0.25s a red star rises\n0.25s it falls"),
        {"model": str(tmp_path / "model"), "height": 64, "width": 96, "fps": 16, "seed": 4, "num_inference_steps": 1,
         "image": str(start)},
    )  # fmt: skip
    model = load(story.request)
    make_film(story, film, model=model)
    left = {file.name for file in state_folder(film).rglob("*")}
    assert left == {".lock", "story.json", "film.mp4", "pieces", "000000.safetensors", "000001.safetensors"}

    # As for clips that go on from a snapshot: another picture of the same name is another one.
    clips = [
        story.request.model_copy(update={"image": None} | named)
        for named in ({"image": str(start)}, {"last_image": str(start)}, {"extend": str(start)}, {})
    ]
    before = [describe_run(clip, model) for clip in clips]
    Image.new("RGB", (96, 64), "red").save(start)
    assert [describe_run(clip, model) == was for clip, was in zip(clips, before, strict=True)] == [False] * 3 + [True]
    with pytest.raises(RequestError, match=r"from segment 1 on \(files: not as it was\)"):
        make_film(story, film, model=model, overwrite=True)


def test_one_process_makes_a_film(tmp_path: Path, wan_folder: Path, model: LoadedModel) -> None:
    story, state = request_of(wan_folder), FilmState(tmp_path / "film.story")
    with state.locked(), pytest.raises(OutputError, match="being made by another command"):
        make_film(story, tmp_path / "film.mp4", model=model)
    assert not state.folder.exists()
    with state.locked():
        state.begin({})
    assert {file.name for file in state.folder.iterdir()} == {".lock", "pieces", "story.json"}
    with state.locked():
        pass


def test_pieces_behind_one_that_cannot_be_read_never_count(tmp_path: Path) -> None:
    state = FilmState(tmp_path / "film.story")
    state.begin({})
    for number in range(5):
        state.add(number, Piece(f"{number}", {"x": torch.full((2,), float(number))}, number, number))
    pieces = tmp_path / "film.story" / "pieces"
    assert [piece.about for piece in state.pieces()] == ["0", "1", "2", "3", "4"]
    (pieces / "000001.safetensors").write_bytes(b"torn")
    (pieces / "000003.safetensors").unlink()
    (pieces / ".000005.0a0a0a0a.partial.safetensors").write_bytes(b"half")
    assert [piece.about for piece in state.pieces()] == ["0"]
    state.drop_from(1)
    assert [file.name for file in pieces.iterdir()] == ["000000.safetensors"]

    file = pieces / "000000.safetensors"
    file.write_bytes(file.read_bytes().replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    with pytest.raises(RequestError, match="was made by another version"):
        list(state.pieces())


SCRIPTS = [
    ("anna: a red star\n\nben: falls", "line 2 is empty"),
    ("", "the story is empty"),
    ("# only a comment", "the story is empty"),
    ("a star meets @anna\nanna: a ring", "line 1 uses the name anna before it is given"),
    ("anna:", "line 1 names anna and says nothing of it"),
    ("anna (a star):", "line 1 names anna and says nothing of it"),
    ("anna ( ): rises", "line 1 has an empty look of anna"),
    ("0s a star", "more than 0 and at most 600 seconds, not 0"),
    ("9999s a star", "at most 600 seconds, not 9999"),
    ("a star\n# remember: pinn\na ring", "line 2: remember is pin, drop, or the number of the segment whose memory"),
    ("# remember: 0\na ring", "line 1: remember is pin, drop"),
    (f"# remember: {'9' * 5000}\na ring", "line 1: remember is pin, drop"),
    ("# remember: pin\n# remember: drop\na ring", "line 2 says once more how the next one is remembered"),
    ("a ring\n# remember: pin\n# end", "the last line says how the next one is remembered, and none follows"),
]


@pytest.mark.parametrize(("text", "problem"), SCRIPTS)
def test_what_is_no_story(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        read_story(text)


def test_lines_and_yaml_say_the_same(tmp_path: Path) -> None:
    text = "# a story\n# remember: Pin\nAnna: a red star\n#remember:drop\n# cut\n2.5s anna: meets @Anna\n"
    marked = read_story(f"{text}# remember: 1\nBen: a ring\n# remember me\nBen: falls")
    assert [(line.remember, line.cut) for line in marked] == [("pin", False), ("drop", True), (1, False), (None, False)]
    lines = read_story("# a story\nAnna: a red star\n2.5s anna: meets @Anna\n# cut\nBen: a ring\n\n")
    assert [line.prompt for line in lines] == ["Anna: a red star", "anna: meets Anna", "Ben: a ring"]
    assert [(line.name, line.returns, line.cut, line.seconds) for line in lines] == [
        ("anna", False, False, None), ("anna", True, False, 2.5), ("ben", False, True, None),
    ]  # fmt: skip
    file = tmp_path / "story.yaml"
    file.write_text(
        "- 'Anna: a red star'\n- {name: anna, prompt: meets @Anna, seconds: 2.5}\n"
        "- {name: Ben, prompt: a ring, cut: true}"
    )
    assert read_story_file(file) == lines
    file.write_text(
        "- {prompt: 'Anna: a red star', remember: pin}\n"
        "- {name: anna, prompt: meets @Anna, seconds: 2.5, cut: true, remember: drop}\n"
        "- {name: Ben, prompt: a ring, remember: 1}\n- {name: Ben, prompt: falls}"
    )
    assert read_story_file(file) == marked
    file.write_text("- 2024-99-99\n- yes")
    assert [line.prompt for line in read_story_file(file)] == ["2024-99-99", "yes"]
    with pytest.raises(RequestError, match="cannot read"):
        read_story_file(tmp_path / "none.txt")


def test_a_look_is_given_once_and_told_from_there_on() -> None:
    text = "anna: spins\nAnna (a small  red star): rises\nben (a ring): meets @anna\nanna: falls on @ben\n"
    lines = read_story(text + "anna (blue): spins")
    assert [line.words(named=True) for line in lines] == [
        "anna: spins", "Anna: a small red star rises", "ben: a ring meets a small red star",
        "anna: a small red star falls on a ring", "anna: blue spins",
    ]  # fmt: skip
    assert [line.words(named=False) for line in lines][3] == "a small red star falls on a ring"
    assert [line.prompt for line in lines][1] == "Anna: rises"
    written = [{"name": "anna", "prompt": "spins"}, {"name": "Anna", "look": "a small red star", "prompt": "rises"},
               {"name": "ben", "look": "a ring", "prompt": "meets @anna"}, "anna: falls on @ben",
               {"name": "anna", "look": "blue", "prompt": "spins"}]  # fmt: skip
    assert read_entries(written) == lines
    assert lines_told([line.told() for line in lines]) == lines
    assert "look" not in lines[0].told()
    # A film that goes on knows who was there, and what they look like.
    assert looks_in(lines) == {"anna": "blue", "ben": "a ring"}
    (more,) = read_story("ben: falls", looks_in(lines))
    assert (more.returns, more.words(named=False)) == (True, "a ring falls")
    # What is no name is no look either.
    assert read_story("a star (red): rises")[0].words(named=False) == "a star (red): rises"
    # A line of a film that an earlier version made is told as it was.
    assert Line("Rome (1920): a street").words(named=True) == "Rome (1920): a street"


YAMLS = [
    ("- {prompt: a, look: red}", "entry 1 has a look and no name"),
    ("- {prompt: a, name: b, look: ''}", "entry 1 has an empty look of b"),
    ("- {prompt: a, name: b, look: 3}", "entry 1: a look is words, not 3"),
    ("- {prompt: a, name: b, look: " + 20_000 * "a" + "}", "at most 20000 letters"),
    ("a: b", "is a list of prompts"), ("", "is a list of prompts"), ("- prompt: ''", "entry 1 is empty"),
    ("- a\n- [", "not YAML: line 2"), ("- {prompt: a, sound: b}", "entry 1 has 'sound'"),
    ("- {prompt: a, remember: true}", "entry 1: remember is pin, drop, or the number of the segment"),
    ("- {prompt: a, seconds: soon}", "must be a number, not 'soon'"), ("- {prompt: a, seconds: .nan}", "not nan"),
    ("- {prompt: a, seconds: true}", "must be a number, not True"), ("- {prompt: a, seconds: 1e999}", "not inf"),
    ("- {prompt: a, seconds: -0.0}", "more than 0"), ("- {prompt: a, seconds: " + 4000 * "9" + "}", "not 999"),
    ("- {prompt: a, seconds: " + 9999 * "9" + "}", "not YAML"),
    ("- {prompt: a, seconds: !!int 0x" + 9999 * "f" + "}", "far too large|not YAML"),
    ("- {prompt: a, seconds: [" + 9999 * "1," + "]}", r"must be a number, not \[1"),
    ("- {prompt: a, name: 'two words'}", "a name is one word"), ("- {prompt: a, name: " + 9999 * "x" + "}", "one word"),
    ("- {prompt: a, cut: yes please}", "cut must be true or false, not 'yes please'"),
    ("- {prompt: a, cut: 1}", "cut must be true or false, not 1"), ("- &a [x, x]\n- *a", "aliases are not supported"),
    (1000 * "[", "nested too deep"), ("- !!timestamp 2024-99-99", "not YAML"), ("- !!bool perhaps", "not YAML"),
    ("- !!python/name:os.system ''", "not YAML"), ("- " + 20_001 * "a", "at most 20000 letters"),
    ("- {prompt: a, 7: b}", "entry 1 has 7; known are"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), YAMLS)
def test_what_is_no_story_in_yaml(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem) as caught:
        read_story_yaml(text)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


LINE = {"prompt": "anna: a star", "seconds": 0.5, "name": "anna", "returns": False, "cut": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"lines": [LINE | {"seconds": "x"}]}, {"lines": [LINE | {"seconds": 1e12}]}, {"lines": [LINE | {"seconds": 0}]},
        {"lines": [LINE | {"seconds": True}]}, {"lines": [LINE | {"prompt": " "}]}, {"lines": [LINE | {"prompt": 3}]},
        {"lines": [LINE | {"look": 3}]}, {"lines": [LINE | {"look": "a", "name": None}]},
        {"lines": [LINE | {"name": 3}]}, {"lines": [LINE | {"cut": "yes"}]}, {"lines": []}, {"lines": [3]},
        {"lines": {"a": LINE}}, {"lines": 4097 * [LINE]}, {"seconds": "x"}, {"seconds": 1e12}, {"seconds": None},
        {"seconds": float("nan")}, {"read_decay": "x"}, {"read_decay": 99}, {"rectify_every": -1},
        {"rectify_every": float("inf")}, {"rectify_every": None}, {"memory": 3}, {"memory": {"kind": "all"}},
    ],
)  # fmt: skip
def test_receipts_of_films_are_not_trusted(wan_folder: Path, changes: dict[str, Any]) -> None:
    story = request_of(wan_folder)
    receipt: dict[str, Any] = {"request": story.request.model_dump(mode="json"), "story": story.told()}
    assert read_told(receipt) == story
    with pytest.raises(RequestError, match="does not say its story in a way that this version reads"):
        read_told(receipt | {"story": story.told() | changes})


@pytest.mark.parametrize(
    ("model_name", "arguments", "problem"),
    [
        ("mochi", {}, "mochi cannot make a story; models that can: tiny, wan2.1-1.3b"),
        ("wan2.2-a14b", {"causal": True}, "makes no story chunk by chunk; models that can: tiny, wan2.1-1.3b"),
        ("wan2.1-i2v-14b-480p", {}, "from an image on: give --image"),
        ("tiny", {"memory": {"kind": "radial"}}, "window by window, without a memory"),
        ("tiny", {"causal": True, "read_decay": 99.0}, "read_decay must be above 0 and at most 16, not 99"),
        ("tiny", {"causal": True, "rectify_every": 4}, "rectify_every 4 counts only with read_decay"),
        ("tiny", {"causal": True, "read_decay": 0.5, "rectify_every": -1}, "0 or more chunks, not -1"),
        ("tiny", {"seconds": float("nan")}, "at most 600 seconds, not nan"),
    ],
)
def test_models_that_cannot_are_told_with_those_that_can(
    model_name: str, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RequestError, match=problem):
        make_story_request(read_story("a red star"), {"model": model_name}, **arguments)


@pytest.mark.parametrize(
    ("fields", "causal", "problem"),
    [
        ({"control_video": "a.mp4", "mask": "a.png"}, False, "a story takes no control_video, mask: leave"),
        ({"control_video": "a.mp4", "strength": 0.5}, True, "a story takes no control_video, strength: leave"),
        ({"references": ["a.png"]}, False, "a story takes no references"),
        ({"keyframes": ["3:a.png"]}, True, "a story takes no keyframes"),
        ({"image": "a.png", "last_image": "b.png"}, False, "a story takes no last_image"),
        ({"num_videos": 2}, True, "a story takes no num_videos"), ({"then": ["b"]}, False, "a story takes no then"),
        ({"num_frames": 9}, False, "a story takes no num_frames"),
        ({"decoder": "tiny", "riflex": True}, True, "chunk by chunk takes no decoder, riflex"),
        ({"attention": "adaptive"}, True, "leave attention adaptive out"),
    ],
)  # fmt: skip
def test_what_counts_nothing_in_a_story_is_refused(fields: dict[str, Any], causal: bool, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        make_story_request(read_story("a red star"), {"model": "tiny"} | fields, causal=causal)


def test_a_folder_that_another_process_has_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a full disk is: what passes says so by its number."""
    state = FilmState(tmp_path / "film")
    with state.locked(), pytest.raises(OutputError, match="is being made by another command") as busy:
        FilmState(state.folder).locked().__enter__()
    assert busy.value.errno == errno.EBUSY

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(OutputError, match="No space left") as full:
        state.begin({})
    assert full.value.errno == errno.ENOSPC
