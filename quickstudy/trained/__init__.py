"""What comes out of training, and what comes out of adapting it to one task."""

from quickstudy.trained.load import load
from quickstudy.trained.predictor import Predictor
from quickstudy.trained.reading import SupportSet
from quickstudy.trained.trained import Trained

__all__ = ["Predictor", "SupportSet", "Trained", "load"]
