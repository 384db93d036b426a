"""The embedded data set and image pipelines."""
