"""Forms of a model that run without this package."""
