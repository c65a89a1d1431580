"""Keras layers: what has weights, and the preprocessing that every path into the model shares."""
