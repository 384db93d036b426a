"""Pictures: predictions, and later scan orders and receptive fields."""

from vssm.viz.predictions import draw_predictions

__all__ = ["draw_predictions"]
