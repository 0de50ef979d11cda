"""Every learner, listed by hand. One file per algorithm, in families."""

from quickstudy.learner import Learner
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

# Names on the command line: lower case, no separators.
LEARNERS: dict[str, type[Learner]] = {
    "maml": MAML,
    "reptile": Reptile,
    "anil": ANIL,
    "boil": BOIL,
    "metasgd": MetaSGD,
    "mamlplusplus": MAMLPlusPlus,
    "imaml": IMAML,
    "metacurvature": MetaCurvature,
    "cavia": CAVIA,
    "leo": LEO,
    "protonet": ProtoNet,
    "matchingnet": MatchingNet,
    "relationnet": RelationNet,
    "attentiveprotonet": AttentiveProtoNet,
    "r2d2": R2D2,
    "metaoptnet": MetaOptNet,
    "metarnn": MetaRNN,
    "snail": SNAIL,
    "mann": MANN,
    "lstmmetalearner": LSTMMetaLearner,
    "cnp": CNP,
    "anp": ANP,
    "cnaps": CNAPs,
    "finetune": FineTune,
    "baselinepp": BaselinePP,
    "simpleshot": SimpleShot,
    "nearestcentroid": NearestCentroid,
}
