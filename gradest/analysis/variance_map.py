"""The map of variance, by which `recommend` orders estimators."""

__all__ = ["MAP_PROBLEM"]

MAP_PROBLEM = "variance-map"
"""The name of the problem of `gradest benchmark` whose results are the map."""
