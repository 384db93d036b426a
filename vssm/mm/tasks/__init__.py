"""Classification, detection and segmentation: models, necks, data, checks, evaluation, studies."""
