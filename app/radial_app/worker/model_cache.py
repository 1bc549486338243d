"""The one model that a process holds in memory, loaded anew only where the next job needs another."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from radial.models.lora_settings import adapter_file
from radial_app.jobs.job import load_key

if TYPE_CHECKING:
    from radial.generation.ranks import Ranks
    from radial.loading.load import LoadedModel
    from radial.models.hub.download import OnProgress
    from radial.request import GenerationRequest


class ModelCache:
    """Holds a model on a device.

    Args:
        device: ``auto`` leaves it to each job.
        ranks: the processes that share each clip; all of them load what rank 0 is asked for.
    """

    def __init__(self, device: str, ranks: Ranks | None = None) -> None:
        self.device, self.ranks = device, ranks
        self._model: LoadedModel | None = None
        self._key: Any = None

    @property
    def holds(self) -> bool:
        """Whether a model is in memory."""
        return self._model is not None

    def get(
        self, request: GenerationRequest, on_load: Callable[[], None] = lambda: None,
        on_download: OnProgress = lambda done, total: None,
    ) -> LoadedModel:  # fmt: skip
        """The model of a request, with its adapters; rank 0 has the others load it too.

        Args:
            on_load: told before another model than that in memory is loaded.

        Raises:
            RadialError: it cannot be loaded, here or by another rank.
        """
        if self.ranks is None:
            return self._get(request, on_load, on_download)
        from radial.loading.load import fetch

        fetch(request, on_download)
        self.ranks.order(("load", request))
        return self.get_with_others(request, on_load)

    def get_with_others(self, request: GenerationRequest, on_load: Callable[[], None] = lambda: None) -> LoadedModel:
        """The same, by all ranks at once, when the checkpoint is here."""
        assert self.ranks is not None
        error: Exception | None = None
        try:
            self._get(request, on_load)
        except Exception as failure:
            error = failure
        self.ranks.agree(error)
        assert self._model is not None
        return self._model

    def _get(
        self, request: GenerationRequest, on_load: Callable[[], None],
        on_download: OnProgress = lambda done, total: None,
    ) -> LoadedModel:  # fmt: skip
        from radial.loading.load import load, profile_of

        wanted = load_key(request)
        if self.device != "auto":
            request = request.model_copy(update={"device": self.device})
        files = [adapter_file(lora.path) for lora in request.loras]
        stamps = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists()]
        key, processes = (wanted, request.device, stamps), self.ranks.size if self.ranks else 1
        if key != self._key or self._model is None or profile_of(request, processes) != self._model.profile:
            on_load()
            self.drop()
            self._model, self._key = load(request, on_download, processes=processes), key
        assert self._model is not None
        return self._model

    def drop(self) -> None:
        """Free the memory that the model takes."""
        if self._model is None:
            return
        import torch

        self._model = self._key = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
