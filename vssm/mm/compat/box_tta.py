"""mmdet's test-time augmentation for models that also predict masks, which mmdet cannot merge."""

from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """mmdet's ``DetTTAModel`` without masks; same arguments."""

    def merge_preds(self, data_samples_list: list[list[DetDataSample]]) -> list[DetDataSample]:
        """Merge the boxes of the views of each image."""
        for sample in (sample for samples in data_samples_list for sample in samples):
            sample.pred_instances.pop("masks", None)
        return super().merge_preds(data_samples_list)
