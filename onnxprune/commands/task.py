"""What a run works on."""

from dataclasses import dataclass

from onnxprune.commands.inputs import Inputs
from onnxprune.model.cost import Cost
from onnxprune.model.io import Graph
from onnxprune.plan.plan import Plan
from onnxprune.recover.sequential import Calibration
from onnxprune.slim import Recipe


@dataclass(frozen=True, slots=True)
class Task:
    """A model as it was read, and what is asked of it; ``runs`` are the samples to estimate from."""

    graph: Graph
    whole: Cost
    recipe: Recipe
    stored: Plan | None
    inputs: Inputs
    runs: Calibration | None
