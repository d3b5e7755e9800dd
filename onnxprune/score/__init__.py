"""Importance of units: one function for each criterion, higher = keep."""
