"""From a learner and tasks to a trained learner: the outer loop, its optimizer, checkpoints and run folders."""

from quickstudy.training.budget import Budget
from quickstudy.training.curve import LOG_EVERY, SHOWN_TASKS
from quickstudy.training.loop import Step, meta_steps
from quickstudy.training.module import as_module
from quickstudy.training.outer import optimizer_of, schedule_of
from quickstudy.training.session import CHECKPOINT_SECONDS, train
from quickstudy.training.settings import TrainSettings

__all__ = [
    "CHECKPOINT_SECONDS",
    "LOG_EVERY",
    "SHOWN_TASKS",
    "Budget",
    "Step",
    "TrainSettings",
    "as_module",
    "meta_steps",
    "optimizer_of",
    "schedule_of",
    "train",
]
