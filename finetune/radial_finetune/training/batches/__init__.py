"""Which clips a step trains on. Everything follows from the seed and the step, so that a run resumes anywhere."""

from radial_finetune.training.batches.batches import Batch, Batches, hold_out
from radial_finetune.training.batches.packs import PackedBatch, Packs

__all__ = ["Batch", "Batches", "PackedBatch", "Packs", "hold_out"]
