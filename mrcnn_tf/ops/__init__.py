"""Operations on feature maps: one Python face, several backends that give the same values."""

from mrcnn_tf.ops.roi_align import roi_align
from mrcnn_tf.ops.shape_aware import shape_aware_roi_align

__all__ = ["roi_align", "shape_aware_roi_align"]
