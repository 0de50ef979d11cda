"""What comes out of training, and what comes out of adapting it to one task."""

from quickstudy.trained.adapting import SCOPE
from quickstudy.trained.load import load
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.reading import as_features, as_inputs
from quickstudy.trained.support import SupportSet
from quickstudy.trained.trained import Trained

__all__ = ["SCOPE", "Predictor", "SupportSet", "Trained", "as_features", "as_inputs", "load"]
