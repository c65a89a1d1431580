"""The models, each visible on one page, and the object that holds their results."""
