"""Data sets on disk, the generated set, and the pipeline that turns them into batches of fixed shape."""
