"""Repair of what a step took from the accuracy, in closed form and without the training framework."""
