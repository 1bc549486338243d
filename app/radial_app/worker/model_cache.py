"""The one model that a process holds in memory, loaded anew only where the next job needs another."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radial.generation.ranks import Ranks
    from radial.loading.load import LoadedModel
    from radial.models.hub import OnProgress
    from radial_app.jobs.job import Job


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

    def get(self, job: Job, on_download: OnProgress = lambda done, total: None) -> LoadedModel:
        """The model of a job, with its adapters; rank 0 has the others load it too.

        Raises:
            RadialError: it cannot be loaded, here or by another rank.
        """
        if self.ranks is None:
            return self._get(job, on_download)
        from radial.loading.load import fetch

        fetch(job.request, on_download)
        self.ranks.order(("load", job))
        return self.get_with_others(job)

    def get_with_others(self, job: Job) -> LoadedModel:
        """The same, by all ranks at once, when the checkpoint is here."""
        assert self.ranks is not None
        error: Exception | None = None
        try:
            self._get(job, lambda done, total: None)
        except Exception as failure:
            error = failure
        self.ranks.agree(error)
        assert self._model is not None
        return self._model

    def _get(self, job: Job, on_download: OnProgress) -> LoadedModel:
        from radial.loading.load import load, profile_of
        from radial.models.lora_settings import adapter_file

        request = job.request if self.device == "auto" else job.request.model_copy(update={"device": self.device})
        files = [adapter_file(lora.path) for lora in request.loras]
        stamps = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists()]
        key, processes = (job.group, request.device, stamps), self.ranks.size if self.ranks else 1
        if key != self._key or self._model is None or profile_of(request, processes) != self._model.profile:
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
