"""Which blocks are dropped: as many as a recipe or its rules ask for, lowest score first, or those of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.channels.blocks import Block
from onnxprune.channels.groups import Channels
from onnxprune.commands.parts import by_rule
from onnxprune.commands.repair import LEAST_SQUARES, repair_name
from onnxprune.commands.task import Task
from onnxprune.errors import PlanError
from onnxprune.model.io import Graph
from onnxprune.plan.select import named_blocks
from onnxprune.recover.depth import (
    REPAIRED,
    TRIAL_SAMPLES,
    Drop,
    affordable,
    choose_blocks,
    number_of_blocks,
    trial_samples,
)
from onnxprune.report.schema import BlockRow
from onnxprune.runtime.session import SessionOptions
from onnxprune.score.readings import Runs, feeds_of
from onnxprune.slim import Progress
from onnxprune.surgery.apply import stored_blocks


@dataclass(frozen=True, slots=True)
class Depth:
    """The blocks of a model, and those that go, with their scores in the order in which they went."""

    found: tuple[Block, ...] = ()
    gone: tuple[Drop, ...] = ()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that go, in graph order."""
        names = {one.block.name for one in self.gone}
        return tuple(block for block in self.found if block.name in names)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(block.name for block in self.blocks)

    def rows(self) -> tuple[BlockRow, ...]:
        """Returns the blocks as a report lists them."""
        scores = {one.block.name: one.score for one in self.gone}
        return tuple(
            BlockRow(
                block.name, block.name in scores, block.reason, block.parameters, block.parent, scores.get(block.name)
            )
            for block in self.found
        )  # fmt: skip


def dropped(channels: Channels, found: tuple[Block, ...], task: Task, progress: Progress | None = None) -> Depth:
    """Returns which blocks of a model go.

    Args:
        channels: Its analysis.
        found: Its blocks.
        task: What is asked for.
        progress: Called with the stage and the fraction of it that is done.

    Raises:
        UsageError: there are fewer blocks than are to go, or no such score.
        PlanError: no block can be dropped, or the plan names one that is not there.
    """
    recipe = task.recipe
    if task.stored is not None:
        return Depth(found, tuple(Drop(block, float("nan")) for block in stored_blocks(found, task.stored.blocks)))
    gone: list[Drop] = []
    selected = False
    things = named_blocks(channels.graph, [block for block in found if block.counts])
    for rule, names in by_rule(recipe, things):
        amount = recipe.layers if rule is None else rule.layers
        if not amount:
            continue
        selected = True
        chosen = [block for block in found if block.name in names]
        number = number_of_blocks(amount, len(chosen))
        score = (rule.layer_score if rule is not None else None) or recipe.layer_score
        score = score or _ranking(task, channels.graph, len(chosen), number)
        runs = _runs(task, channels, trial_samples(task.whole.macs, len(chosen), number), score, progress)
        gone += choose_blocks(channels.graph, chosen, amount, score, runs)
    if recipe.layers and not selected:
        raise PlanError(_why_none(found))
    return Depth(found, tuple(gone))


def _ranking(task: Task, graph: Graph, count: int, number: int) -> str | None:
    """Returns how to rank where nobody says: by what a repair will leave, where that does not take too long."""
    repaired = task.inputs.given is not None and repair_name(task.recipe) == LEAST_SQUARES
    return REPAIRED if repaired and affordable(graph, task.whole.macs, count, number) else None


def _runs(task: Task, channels: Channels, number: int, score: str | None, progress: Progress | None) -> Runs | None:
    recipe, samples = task.recipe, task.inputs.given
    if samples is None:
        return None
    number = TRIAL_SAMPLES[1] if score == REPAIRED else number
    drawn = samples.split()[0].draw(2 * number, recipe.seed)
    fitted, held_out = (feeds_of(part, channels.graph, channels.shapes) for part in drawn.split(0.5))
    options = SessionOptions(recipe.ep, recipe.threads)
    return Runs(fitted, int(recipe.max_memory), options, recipe.seed, progress, held_out)


def _why_none(found: Sequence[Block]) -> str:
    reasons = [block.reason for block in found if block.reason is not None]
    if any(block.counts for block in found):
        return "no block that can be dropped is selected: loosen --include or --exclude"
    if reasons:
        most = max(reasons, key=reasons.count)
        return f"no block can be dropped; the most common reason is {most!r}: see 'onnxprune inspect' for all of them"
    return "no block can be dropped: no part of the model maps a tensor to one of the same shape"
