"""Shared by all tests: where kernels run, memory that shows what was not written, and a tiny real pipeline."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm

# Without a GPU, kernels run in Triton's interpreter. Set before triton is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # others start processes that import PyTorch anew, for seconds
os.environ["RADIAL_FORCE"] = "1"  # whatever the memory of the machine
os.environ["GOMP_SPINCOUNT"] = "3000"  # as the command line sets it
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "True"  # as the studio sets it

# nohup has this process ignore Ctrl+C, and its children with it, which some tests send it to.
with contextlib.suppress(ValueError):  # not in the main thread
    signal.signal(signal.SIGINT, signal.default_int_handler)

warm.use()

ROOT = Path(__file__).parent.parent
_LEFT_OUT = pytest.StashKey[int]()
# Those that start servers, trainings, downloads and processes; `make test-quick` leaves them out.
SLOW = {
    "test_attack", "test_bounds", "test_cli", "test_cluster", "test_context_parallel", "test_doors", "test_downloads",
    "test_end_to_end", "test_first_run", "test_fused_blocks", "test_operations", "test_pretrain", "test_ranks",
    "test_render", "test_resume", "test_studio", "test_tiny", "test_together", "test_train", "test_tune",
    "test_without_triton", "test_worker", "test_fresh_page", "test_accessibility", "test_story_place",
    "test_story_jobs",
}  # fmt: skip

# Files that take long, the longest first: they begin first, so that at the end no process waits for another.
LONG = (
    # Of the studio in this order: a page is fresh before models are tuned and clips made by the dozen.
    "test_accessibility", "test_film_maker", "test_fresh_page", "test_steering", "test_story_place", "test_studio",
    "test_ten_tasks",
    "test_ranks", "test_docs", "test_train", "test_attack", "test_worker", "test_cluster", "test_measures",
    "test_operations",
    "test_every_pipeline", "test_block_sparse", "test_seam", "test_without_triton", "test_downloads", "test_first_run",
    "test_tail", "test_tiny", "test_from_image", "test_render", "test_single_file", "test_doors", "test_step_cache",
    "test_ways", "test_evaluate", "test_rest", "test_formats", "test_adapter", "test_memory", "test_guidance",
    "test_story", "test_tune", "test_fused_blocks", "test_mixed_data", "test_trainer", "test_plan",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Where many tests run, in several processes, what they start is to start at once."""
    several = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if several and not torch.cuda.is_available() and "RADIAL_COLD" not in os.environ:
        warm.begin(tempfile.mkdtemp(prefix="radial-warm-"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow, and begin with what takes longest. Leave out GPU tests where there is none, and say so."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    if torch.cuda.is_available():
        return
    chosen = [item for item in items if "gpu" not in item.keywords]
    left_out = [item for item in items if "gpu" in item.keywords]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT] = len(left_out)
        items[:] = chosen


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: nobody need look through it for what may go, time and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    count = terminalreporter.config.stash.get(_LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(f"{count} tests need an NVIDIA GPU and were left out: there is none here")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a test that failed when it fails, not at the end of all."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.when or 'setup'} failed: {report.nodeid}", flush=True)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers outlive who started them: end those that a failed test has left."""
    import psutil

    yield
    ours = str(tmp_path_factory.getbasetemp())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), process.environ().get("RADIAL_DATA_DIR", "")]
            if process.pid != os.getpid() and any(ours in word for word in words):
                process.kill()


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue of the test's own."""
    folder: Path = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("RADIAL_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors start as NaN, so that an output tile that is never written fails its test."""

    def poison(plain: Any) -> Any:
        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor: torch.Tensor = plain(*args, **kwargs)
            narrow = tensor.is_floating_point() and tensor.element_size() == 1  # e4m3 knows no fill
            if narrow:
                tensor.view(torch.uint8).fill_(0x7F)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() and not narrow else tensor

        return poisoned

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Wan's real classes at small size with random weights, saved as a real one is."""
    folder = tmp_path_factory.mktemp("checkpoints") / "wan"
    build_wan(two_transformers=False).save_pretrained(folder)
    return folder


@pytest.fixture
def wan(wan_folder: Path) -> Any:
    """The pipeline of :func:`wan_folder`, loaded afresh."""
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(wan_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def wan22() -> Any:
    """A Wan 2.2 pipeline: two transformers that share the steps."""
    pipe = build_wan(two_transformers=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_wan(*, two_transformers: bool) -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    words.train_from_iterator(
        ["a red circle"],
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, is_encoder_decoder=False)
    )
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )

    def transformer() -> Any:
        return WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            text_dim=32,
            ffn_dim=64,
            num_layers=3,
            rope_max_seq_len=64,
        )

    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer().eval(),
        transformer_2=transformer().eval() if two_transformers else None,
        boundary_ratio=0.875 if two_transformers else None,
    )


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
