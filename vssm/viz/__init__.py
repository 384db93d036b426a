"""Pictures: predictions, and later scan orders and receptive fields."""
