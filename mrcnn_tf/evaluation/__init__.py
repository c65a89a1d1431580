"""How good results are: COCO's metrics and the recall of proposals. NumPy and pycocotools, no TensorFlow."""
