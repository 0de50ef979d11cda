"""Networks that are safe under `vmap` and double backward. Any other `nn.Module` is a model too."""

from quickstudy.nn.conv4 import conv4
from quickstudy.nn.mlp import mlp
from quickstudy.nn.norm import BatchNorm, norm

NETWORKS = {"conv4": conv4, "mlp": mlp}

__all__ = ["NETWORKS", "BatchNorm", "conv4", "mlp", "norm"]
