"""Quickstudy: train once on many small tasks, then learn a new task from a handful of examples.

>>> import quickstudy as qs
>>> tasks = qs.tasks.sinusoid("train", shots=10, queries=10)
>>> learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=1)
>>> trained = qs.train(learner, tasks, iterations=2, meta_batch=4, progress=False)
"""

__version__ = "0.1.0"

from torch.nn.functional import cross_entropy, mse_loss

from quickstudy import errors, nn, tasks
from quickstudy.engine import map_tasks, meta_gradient
from quickstudy.evaluation import Difference, Score, compare, evaluate
from quickstudy.learner import Batch, Episode, Learner, as_module, with_gradient
from quickstudy.learners import LEARNERS
from quickstudy.learners.gradient.maml import MAML
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.metric.protonet import ProtoNet
from quickstudy.learners.transfer.finetune import FineTune
from quickstudy.protocol import Protocol
from quickstudy.trained import Predictor, Trained, load
from quickstudy.training import meta_steps, train

__all__ = [
    "LEARNERS",
    "MAML",
    "Batch",
    "Difference",
    "Episode",
    "FineTune",
    "Learner",
    "NearestCentroid",
    "Predictor",
    "ProtoNet",
    "Protocol",
    "Score",
    "Trained",
    "__version__",
    "as_module",
    "compare",
    "cross_entropy",
    "errors",
    "evaluate",
    "load",
    "map_tasks",
    "meta_gradient",
    "meta_steps",
    "mse_loss",
    "nn",
    "tasks",
    "train",
    "with_gradient",
]
