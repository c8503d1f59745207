"""Evaluation: benchmarks that score understanding and generation, for this model and any other."""
