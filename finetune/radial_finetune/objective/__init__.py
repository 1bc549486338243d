"""What each family of models is trained to predict, in the conventions of its own pipeline.

Rectified flow throughout: x_sigma = (1 - sigma) x + sigma e. Wan and both HunyuanVideos predict e - x at timestep 1000
sigma; Mochi predicts x - e at timestep 1000 (1 - sigma).
"""

from radial_finetune.objective.base import Expert, Objective, Start, Text, Whether
from radial_finetune.objective.causal import CUTS, CausalLoss, by_frame, plan_of
from radial_finetune.objective.distillation import StepDistillation
from radial_finetune.objective.find import expert_span, find_objective, objective_of, stands_for_frames
from radial_finetune.objective.hunyuan_video import HunyuanVideoImageObjective, HunyuanVideoObjective
from radial_finetune.objective.hunyuan_video15 import HunyuanVideo15ImageObjective, HunyuanVideo15Objective
from radial_finetune.objective.loss import Loss, add_noise, packed_loss, velocity_loss
from radial_finetune.objective.mochi import MochiObjective
from radial_finetune.objective.story_memory import BARE, RETURNS, TrainedMemory, returning
from radial_finetune.objective.wan import WanImageObjective, WanObjective

__all__ = [
    "BARE",
    "CUTS",
    "CausalLoss",
    "Expert",
    "HunyuanVideo15ImageObjective",
    "HunyuanVideo15Objective",
    "HunyuanVideoImageObjective",
    "HunyuanVideoObjective",
    "Loss",
    "MochiObjective",
    "Objective",
    "RETURNS",
    "Start",
    "StepDistillation",
    "Text",
    "TrainedMemory",
    "WanImageObjective",
    "WanObjective",
    "Whether",
    "add_noise",
    "by_frame",
    "expert_span",
    "find_objective",
    "objective_of",
    "packed_loss",
    "plan_of",
    "returning",
    "stands_for_frames",
    "velocity_loss",
]
