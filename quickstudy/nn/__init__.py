"""Networks that are safe under `vmap` and double backward. Any other `nn.Module` is a model too."""

from quickstudy.nn.conv4 import conv4
from quickstudy.nn.mlp import mlp
from quickstudy.nn.norm import BatchNorm, norm
from quickstudy.nn.pixels import pixels
from quickstudy.nn.relation import relation
from quickstudy.nn.resnet12 import resnet12
from quickstudy.nn.text import text

NETWORKS = {"conv4": conv4, "mlp": mlp, "pixels": pixels, "relation": relation, "resnet12": resnet12, "text": text}

__all__ = ["NETWORKS", "BatchNorm", "conv4", "mlp", "norm", "pixels", "relation", "resnet12", "text"]
