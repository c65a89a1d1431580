"""Batch inference with Apache Beam: exported models over any number of images, on any runner."""
