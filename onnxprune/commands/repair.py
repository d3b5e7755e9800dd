"""The repair that a recipe asks for."""

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph
from onnxprune.plan.masks import MaskPlan
from onnxprune.recover.fold import fold
from onnxprune.recover.masking import DEFAULT
from onnxprune.recover.recover import FOLD, method_of, needs_samples, repaired
from onnxprune.recover.sequential import Calibration, Repaired, Settings
from onnxprune.runtime.session import SessionOptions
from onnxprune.slim import Recipe
from onnxprune.surgery.gone import Removals
from onnxprune.surgery.mask import mask_weights

NONE, LEAST_SQUARES = "none", "least-squares"


def repair_name(recipe: Recipe) -> str:
    """Returns the repair that is asked for: with samples least squares by default."""
    return recipe.recover or (NONE if recipe.data is None else LEAST_SQUARES)


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair with its settings; ``apply`` takes the graph as it was sliced."""

    name: str
    memory: int
    options: SessionOptions
    criterion: str
    progress: Callable[[str, float], None] | None = None

    @classmethod
    def of(cls, recipe: Recipe, progress: Callable[[str, float], None] | None = None) -> "Repair":
        """Returns the repair of a checked recipe."""
        options = SessionOptions(recipe.ep, recipe.threads)
        return cls(
            repair_name(recipe), int(recipe.max_memory), options, recipe.mask_score or DEFAULT, progress
        )  # fmt: skip

    def apply(
        self,
        sliced: Graph,
        channels: Channels,
        removals: Removals,
        runs: Calibration | None,
        original: Graph,
        masks: MaskPlan | None = None,
    ) -> tuple[Graph, list[Repaired]]:
        """Returns the repaired and masked graph, and what became of its operators; the graph itself if nothing changed.

        Args:
            sliced: The graph without the units.
            channels: Analysis of the graph that they were removed from.
            removals: The units.
            runs: Samples to fit to, and to judge by.
            original: The graph that the repair aims at, which may have more blocks than was analyzed.
            masks: Weights that are to become zero.
        """
        fitted = self.name != NONE and needs_samples(self.name)
        if fitted and runs is not None and (removals or masks is not None or original is not channels.graph):
            settings = Settings(
                method_of(self.name), memory=self.memory, options=self.options, progress=self.progress, masks=masks,
                criterion=self.criterion,
            )  # fmt: skip
            return repaired(sliced, channels, removals, runs, settings, original)
        result, found = fold(sliced, channels, removals) if self.name == FOLD and removals else (sliced, [])
        return result if masks is None else mask_weights(result, masks), found
