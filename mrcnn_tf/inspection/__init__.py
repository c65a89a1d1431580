"""What is wrong with a model's detections, where it comes from and what to set."""
