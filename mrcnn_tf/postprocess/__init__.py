"""Cleaning up results, whoever made them: overlaps, redundant masks, label maps. No TensorFlow."""
