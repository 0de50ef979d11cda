"""Every learner, listed by hand. One file per algorithm, in families."""

from quickstudy.learner import Learner
from quickstudy.learners.gradient.maml import MAML
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.metric.protonet import ProtoNet
from quickstudy.learners.transfer.finetune import FineTune

# Names on the command line: lower case, no separators.
LEARNERS: dict[str, type[Learner]] = {
    "maml": MAML,
    "protonet": ProtoNet,
    "finetune": FineTune,
    "nearestcentroid": NearestCentroid,
}
