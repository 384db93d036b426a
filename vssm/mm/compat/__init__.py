"""What mmcv, mmdet and mmseg lack beside current packages: compiled operators, boxes merged without their masks."""
