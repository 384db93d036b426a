"""The only place that imports mmengine (and, for detection and segmentation, mmdet and mmseg)."""
