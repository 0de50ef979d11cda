"""Quickstudy: train once on many small tasks, then learn a new task from a handful of examples.

>>> import quickstudy as qs
>>> tasks = qs.tasks.sinusoid("train", shots=10, queries=10)
>>> learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=1)
>>> trained = qs.train(learner, tasks, iterations=2, meta_batch=4, progress=False)
"""

from typing import Any

from torch.nn.functional import cross_entropy, mse_loss

from quickstudy import errors, inner, nn, tasks
from quickstudy.base.version import __version__
from quickstudy.engine import ranks
from quickstudy.engine.check.meta_gradient import check_meta_gradient
from quickstudy.engine.check.verdict import GradientCheck
from quickstudy.engine.choice.forecast import Setting, plan
from quickstudy.engine.mapping import map_tasks, meta_gradient
from quickstudy.evaluation.measures.embeddings import TaskEmbeddings, task_embeddings
from quickstudy.evaluation.measures.instances import InstanceAccuracy, instance_accuracy
from quickstudy.evaluation.measures.intervals import Calibration, interval_coverage
from quickstudy.evaluation.measures.movement import Movement, layer_movement
from quickstudy.evaluation.measures.probabilities import Answers, classification_calibration
from quickstudy.evaluation.measures.recalibration import recalibrated
from quickstudy.evaluation.measures.scope import OutOfScope, out_of_scope, scoped
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.protocol import Protocol
from quickstudy.evaluation.score import Difference, Score, compare
from quickstudy.evaluation.scoring import evaluate
from quickstudy.experiments.advice import Advice, advise
from quickstudy.experiments.baselines import per_task, pooled
from quickstudy.experiments.compare_learners import compare_learners
from quickstudy.experiments.comparison import LearnerComparison
from quickstudy.learner import Batch, Episode, Learner, Outer, with_gradient
from quickstudy.learners import LEARNERS
from quickstudy.learners.gradient.anil import ANIL
from quickstudy.learners.gradient.boil import BOIL
from quickstudy.learners.gradient.cavia import CAVIA
from quickstudy.learners.gradient.imaml import IMAML
from quickstudy.learners.gradient.leo import LEO
from quickstudy.learners.gradient.maml import MAML
from quickstudy.learners.gradient.maml_plus_plus import MAMLPlusPlus
from quickstudy.learners.gradient.meta_curvature import MetaCurvature
from quickstudy.learners.gradient.meta_sgd import MetaSGD
from quickstudy.learners.gradient.reptile import Reptile
from quickstudy.learners.hypernet.anp import ANP
from quickstudy.learners.hypernet.cnaps import CNAPs
from quickstudy.learners.hypernet.cnp import CNP
from quickstudy.learners.memory.lstm_meta_learner import LSTMMetaLearner
from quickstudy.learners.memory.mann import MANN
from quickstudy.learners.memory.meta_rnn import MetaRNN
from quickstudy.learners.memory.snail import SNAIL
from quickstudy.learners.metric.attentive_protonet import AttentiveProtoNet
from quickstudy.learners.metric.matching_net import MatchingNet
from quickstudy.learners.metric.meta_optnet import MetaOptNet
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.metric.protonet import ProtoNet
from quickstudy.learners.metric.r2d2 import R2D2
from quickstudy.learners.metric.relation_net import RelationNet
from quickstudy.learners.transfer.baseline_pp import BaselinePP
from quickstudy.learners.transfer.finetune import FineTune
from quickstudy.learners.transfer.simple_shot import SimpleShot
from quickstudy.trained.load import load
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.trained import Trained
from quickstudy.training.loop import meta_steps
from quickstudy.training.module import as_module
from quickstudy.training.session import train

__all__ = [
    "ANIL",
    "ANP",
    "BOIL",
    "CAVIA",
    "CNP",
    "IMAML",
    "LEARNERS",
    "LEO",
    "MAML",
    "MANN",
    "R2D2",
    "SNAIL",
    "Advice",
    "Answers",
    "AttentiveProtoNet",
    "BaselinePP",
    "Batch",
    "CNAPs",
    "Calibration",
    "Difference",
    "Episode",
    "FewShotClassifier",  # pyright: ignore[reportUnsupportedDunderAll]
    "FewShotRegressor",  # pyright: ignore[reportUnsupportedDunderAll]
    "FineTune",
    "GradientCheck",
    "InstanceAccuracy",
    "LSTMMetaLearner",
    "Learner",
    "LearnerComparison",
    "MAMLPlusPlus",
    "MatchingNet",
    "MetaCurvature",
    "MetaOptNet",
    "MetaRNN",
    "MetaSGD",
    "Metric",
    "Movement",
    "NearestCentroid",
    "OutOfScope",
    "Outer",
    "Predictor",
    "ProtoNet",
    "Protocol",
    "RelationNet",
    "Reptile",
    "Score",
    "Setting",
    "SimpleShot",
    "TaskEmbeddings",
    "Trained",
    "__version__",
    "advise",
    "as_module",
    "check_meta_gradient",
    "classification_calibration",
    "compare",
    "compare_learners",
    "cross_entropy",
    "errors",
    "evaluate",
    "inner",
    "instance_accuracy",
    "interval_coverage",
    "layer_movement",
    "load",
    "map_tasks",
    "meta_gradient",
    "meta_steps",
    "mse_loss",
    "nn",
    "out_of_scope",
    "per_task",
    "plan",
    "pooled",
    "ranks",
    "recalibrated",
    "scoped",
    "task_embeddings",
    "tasks",
    "train",
    "with_gradient",
]


def __getattr__(name: str) -> Any:
    """Import the estimators on first use, because they need scikit-learn."""
    if name not in ("FewShotClassifier", "FewShotRegressor"):
        raise AttributeError(f"module 'quickstudy' has no attribute {name!r}")
    try:
        from quickstudy.trained import estimators
    except ImportError as error:
        raise ImportError(f"{name} needs scikit-learn: pip install 'quickstudy[tables]'.") from error
    return getattr(estimators, name)
