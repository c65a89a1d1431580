"""Other projects' weights, read into these models."""
