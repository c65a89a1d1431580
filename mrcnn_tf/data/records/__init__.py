"""Data sets in TFRecord shards: writing them, and reading ours and those of others."""
