"""The repair that a recipe asks for."""

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph
from onnxprune.recover.fold import fold
from onnxprune.recover.recover import method_of, needs_samples, repaired
from onnxprune.recover.sequential import Calibration, Repaired, Settings
from onnxprune.runtime.session import SessionOptions
from onnxprune.slim import Recipe
from onnxprune.surgery.gone import Removals

NONE = "none"


def repair_name(recipe: Recipe) -> str:
    """Returns the repair that is asked for: with samples least squares by default."""
    return recipe.recover or (NONE if recipe.data is None else "least-squares")


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair with its settings; ``apply`` takes the graph as it was sliced."""

    name: str
    memory: int
    options: SessionOptions
    progress: Callable[[str, float], None] | None = None

    @classmethod
    def of(cls, recipe: Recipe, progress: Callable[[str, float], None] | None = None) -> "Repair":
        """Returns the repair of a checked recipe."""
        options = SessionOptions(recipe.ep, recipe.threads)
        return cls(repair_name(recipe), int(recipe.max_memory), options, progress)

    def apply(
        self, sliced: Graph, channels: Channels, removals: Removals, runs: Calibration | None
    ) -> tuple[Graph, list[Repaired]]:
        """Returns the repaired graph, and what became of its operators; the graph itself where nothing is asked for."""
        if self.name == NONE or not removals:
            return sliced, []
        if not needs_samples(self.name):
            return fold(sliced, channels, removals)
        if runs is None:
            return sliced, []
        settings = Settings(method_of(self.name), memory=self.memory, options=self.options, progress=self.progress)
        return repaired(sliced, channels, removals, runs, settings)
