"""Quantization: integers in place of floats, where the runtime that executes them is faster or the file smaller."""
