"""Pictures of predictions, scan orders, receptive fields, hidden attention and comparisons of models."""

from vssm.viz.attention import attention_maps, draw_attention, hidden_attention, scan_input, scan_names
from vssm.viz.comparison import draw_comparison
from vssm.viz.orders import draw_order
from vssm.viz.predictions import draw_predictions
from vssm.viz.receptive_field import area_share, draw_receptive_fields, receptive_field

__all__ = [
    "area_share",
    "attention_maps",
    "draw_attention",
    "draw_comparison",
    "draw_order",
    "draw_predictions",
    "draw_receptive_fields",
    "hidden_attention",
    "receptive_field",
    "scan_input",
    "scan_names",
]
