"""Metrics, the comparison of two models, and the proof."""
