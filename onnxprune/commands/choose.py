"""Which plan: that of the allocation that is asked for, or the best of several, judged by the repaired results."""

from contextlib import suppress
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from onnxprune.channels.groups import Channels
from onnxprune.commands.inputs import Inputs
from onnxprune.commands.parts import asks_generally, channel_parts, rules_of
from onnxprune.commands.repair import Repair
from onnxprune.data.samples import Samples
from onnxprune.errors import PlanError
from onnxprune.model.cost import Cost, cost
from onnxprune.model.io import Graph
from onnxprune.plan.allocation import ALLOCATIONS, Task
from onnxprune.plan.demand import Demand
from onnxprune.plan.plan import Plan, plan_of, planned, why_nothing
from onnxprune.plan.rounding import block
from onnxprune.plan.select import Things
from onnxprune.recover.divergence import Reference
from onnxprune.recover.sensitivity import LEVELS, READINGS, sensitivity
from onnxprune.recover.sequential import Calibration
from onnxprune.report.schema import AllocationRow
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Memory
from onnxprune.score.readings import Runs, feeds_of
from onnxprune.score.scores import Vector, score
from onnxprune.slim import Progress, Recipe
from onnxprune.surgery.slice import slice_channels

CONTEST_SAMPLES = 128
"""Samples that the rivals are repaired with, before the best of them is repaired with all."""

CONTEST_MACS = 1e11
"""Multiply-accumulates up to which they are repaired with more."""

TRIAL_SAMPLES = (8, 512)
"""Fewest and most samples to measure groups one by one with."""

TRIAL_MACS = 5e12
"""Multiply-accumulates that this may take with more than the fewest samples."""

MOST_MACS = 3e13
"""Multiply-accumulates above which groups are not measured unless asked for: about five minutes on two cores."""

NODE_MACS, PARAMETER_MACS = 5e7, 5e3
"""What making a trial costs for each node and each stored number, in the time of that many multiply-accumulates."""

MEASURED = ALLOCATIONS[-1]

UNITS = 0.05
"""Fraction of units by which a result may differ from what was asked for before a note says so."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan, and what the allocations came to that competed for it; none where one was asked for."""

    plan: Plan
    rivals: tuple[AllocationRow, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What a choice is made in: the original and its cost; blocks of it may be gone from what is analyzed.

    ``others`` are things that a selector may mean instead of groups; ``progress`` is called with the stage and the
    fraction of it that is done.
    """

    original: Graph
    whole: Cost
    others: tuple[Things, ...] = ()
    progress: Progress | None = None


def choose_plan(channels: Channels, recipe: Recipe, inputs: Inputs, setting: Setting) -> Choice:
    """Returns the plan of the allocation that is asked for; with samples, by default that of the best.

    Args:
        channels: Analysis of the model.
        recipe: What is asked for.
        inputs: Samples to estimate from, of which the last fifth judges, and sizes at which costs are counted.
        setting: What the model was before.

    Raises:
        PlanError: nothing can be removed.
    """
    makers = _Makers(channels, recipe, inputs, setting)
    if inputs.given is None or rules_of(recipe) or recipe.allocation not in (None, MEASURED):
        return Choice(makers.plan(recipe.allocation or "uniform"))
    return makers.contest(inputs.given) if recipe.allocation is None else makers.measured(inputs.given)


class _Makers:
    """Makes plans of one recipe; scores and losses are taken once."""

    def __init__(self, channels: Channels, recipe: Recipe, inputs: Inputs, setting: Setting) -> None:
        self._channels, self._recipe, self._samples, self._setting = channels, recipe, inputs.given, setting
        self._whole = setting.whole
        self._shapes = inputs.sizes
        self._progress = setting.progress
        self._parts = channel_parts(channels, recipe, setting.others)
        self._groups = [group for part in self._parts for group in part.groups]
        self._options = SessionOptions(recipe.ep, recipe.threads)
        runs = None if inputs.given is None else self._runs(inputs.given.split()[0])
        self._scores = score(channels, recipe.score, runs, seed=recipe.seed)
        for part in self._parts:
            if part.score not in (None, self._scores.name):
                values = score(channels, part.score, runs, seed=recipe.seed).values
                own = {group.name: values[group.name] for group in part.groups}
                self._scores = replace(self._scores, values={**self._scores.values, **own})
        self._losses: tuple[dict[str, Vector], ...] = ()

    def plan(self, allocation: str, macs: int | None = None, reading: int = 0) -> Plan:
        """Returns the plan of an allocation for what the recipe asks, or instead for a number of MACs.

        ``reading`` chooses among the curves of measured losses.
        """
        recipe = self._recipe
        if allocation == MEASURED and not self._losses:
            self._losses = self._measured()
        general = demand_of(recipe) if asks_generally(recipe) else Demand(ratio=0.0)
        demand = (Demand(macs=macs) if macs is not None else general).absolute(self._whole)
        made = self._planned(allocation, demand, reading)
        limit = asked = demand.parameters
        while limit is not None and asked is not None:  # surgery stores numbers of its own where a mean stays exact
            over = self._cost(made).parameters - limit
            if over <= 0 or asked - over <= 1:
                break
            asked -= over
            made = self._planned(allocation, replace(demand, parameters=asked), reading)
        return made

    def contest(self, samples: Samples) -> Choice:
        """Returns the allocation whose result is nearest to the original on held-out samples.

        The others remove at least as many multiply-accumulates as the uniform one, where a ratio is asked for.
        """
        first = self.plan("uniform")
        macs = None if self._recipe.channels is None else self._cost(first).macs
        judge = _Judge(self._channels, self._recipe, samples, self._setting)
        if not first.removals or macs == 0 or not judge.judges:
            return Choice(first)
        plans = [("uniform", first)]
        for name in ALLOCATIONS[1:]:
            if name != MEASURED or self._measurable():
                plans += [(name, one) for one in self._plans(name, macs)]
        found: dict[str, tuple[float, Plan]] = {}
        for number, (name, one) in enumerate(plans, 1):
            rival = judge.divergence(one), one
            found[name] = min(found.get(name, rival), rival, key=itemgetter(0))
            if self._progress is not None:
                self._progress("allocate", number / len(plans))
        best = min(found, key=lambda name: found[name][0])
        rows = tuple(
            AllocationRow(name, *self._sizes(one), loss if np.isfinite(loss) else None, name == best)
            for name, (loss, one) in found.items()
        )
        return Choice(found[best][1], rows, self._notes(best, found[best][1]))

    def measured(self, samples: Samples) -> Choice:
        """Returns the measured allocation, of the reading whose result is nearest to the original."""
        plans = self._plans(MEASURED)
        if not plans:
            return Choice(self.plan(MEASURED))
        judge = _Judge(self._channels, self._recipe, samples, self._setting)
        return Choice(min(plans, key=judge.divergence) if judge.judges else plans[0])

    def _plans(self, allocation: str, macs: int | None = None) -> list[Plan]:
        """Returns the plans of an allocation, without those whose steps are too coarse."""
        found = []
        for reading in range(len(READINGS) if allocation == MEASURED else 1):
            with suppress(PlanError):
                found.append(self.plan(allocation, macs, reading))
        return found

    def _notes(self, name: str, chosen: Plan) -> tuple[str, ...]:
        ratio = self._recipe.channels
        units = sum(group.units for group in self._groups)
        share = sum(map(len, chosen.removals.values())) / max(units, 1)
        if ratio is None or name == "uniform" or abs(share - ratio) < UNITS:
            return ()
        return (
            f"the allocation {name!r} removes {share:.0%} of the prunable units, for as many multiply-accumulates as "
            f"{ratio:.0%} of every group: --allocation uniform removes that",
        )

    def _planned(self, allocation: str, demand: Demand, reading: int) -> Plan:
        losses = self._losses[reading] if allocation == MEASURED and self._losses else None
        recipe, removals = self._recipe, dict[str, tuple[int, ...]]()
        failure: PlanError | None = None if self._parts else PlanError(why_nothing(self._channels))
        for part in self._parts:
            blocks = [block(group, part.round_to, recipe.target) for group in part.groups]
            task = Task(self._channels, part.groups, blocks, self._scores, losses, self._shapes)
            try:
                removals.update(planned(task, allocation, part.demand(demand)).removals)
            except PlanError as error:
                failure = failure or error
        if failure is not None and not removals:
            raise failure
        made = plan_of(self._channels, removals)
        asked = demand_of(recipe).options() if asks_generally(recipe) else {}
        options = {
            **asked, "score": self._scores.name, "allocation": allocation, "round_to": recipe.round_to,
            "target": recipe.target, "include": list(recipe.include), "exclude": list(recipe.exclude), **made.options,
        }  # fmt: skip
        return replace(made, options=options)

    def _cost(self, made: Plan) -> Cost:
        return cost(slice_channels(self._channels, made.removals), self._shapes)

    def _sizes(self, made: Plan) -> tuple[int, int]:
        found = self._cost(made)
        return found.macs, found.parameters

    def _runs(self, samples: Samples) -> Runs:
        recipe = self._recipe
        feeds = feeds_of(samples, self._channels.graph, self._channels.shapes)
        return Runs(feeds, int(recipe.max_memory), self._options, recipe.seed, self._progress)

    def _measured(self) -> tuple[dict[str, Vector], ...]:
        if self._samples is None:
            return ()
        least, most = TRIAL_SAMPLES
        number = int(min(max(TRIAL_MACS / self._trial_macs(), least), most))
        few = self._samples.split()[0].draw(number, self._recipe.seed)
        return sensitivity(self._channels, self._scores, self._runs(few), self._groups)

    def _measurable(self) -> bool:
        fixed = NODE_MACS * self._whole.nodes + PARAMETER_MACS * self._whole.parameters
        trials = len(LEVELS) * len(self._groups)
        return self._trial_macs() * TRIAL_SAMPLES[0] + trials * fixed <= MOST_MACS

    def _trial_macs(self) -> int:
        return max(len(LEVELS) * len(self._groups) * self._whole.macs, 1)


class _Judge:
    """Holds the repaired result of a plan against the original, on held-out samples."""

    def __init__(self, channels: Channels, recipe: Recipe, samples: Samples, setting: Setting) -> None:
        self._channels, self._repair, self._original = channels, Repair.of(recipe), setting.original
        fitted, held_out = samples.split()
        few = fitted.draw(max(CONTEST_SAMPLES, int(CONTEST_MACS / max(setting.whole.macs, 1))), recipe.seed)
        judged = feeds_of(held_out, channels.graph, channels.shapes)
        self._runs = Calibration(feeds_of(few, channels.graph, channels.shapes), judged, recipe.seed)
        session = open_session(self._original, self._repair.options)
        self._reference = Reference(session, judged, Memory(self._repair.memory))
        self._known: dict[str, float] = {}

    @property
    def judges(self) -> bool:
        """Whether there is any output to judge by."""
        return self._reference.judges

    def divergence(self, made: Plan) -> float:
        """Returns the squared error of the outputs relative to their variance."""
        key = repr(sorted(made.removals.items()))
        if key not in self._known:
            result = slice_channels(self._channels, made.removals)
            result, _ = self._repair.apply(result, self._channels, made.removals, self._runs, self._original)
            found = self._reference.divergence(open_session(result, self._repair.options))
            self._known[key] = found if np.isfinite(found) else np.inf
        return self._known[key]


def demand_of(recipe: Recipe) -> Demand:
    """Returns what a recipe asks of a plan."""
    return Demand.of(recipe.channels, recipe.max_macs, recipe.max_params)


def missed(recipe: Recipe, whole: Cost, result: Cost) -> tuple[str, ...]:
    """Returns a sentence for every budget that the result exceeds."""
    if recipe.plan is not None or (recipe.max_macs is None and recipe.max_params is None):
        return ()
    found = {"max macs": result.macs, "max params": result.parameters}
    return tuple(
        f"--{name.replace(' ', '-')} was not met: {found[name]:,} are left where {int(limit):,} may be; "
        "more cannot go: lower --round-to, or open more groups with --inexact or --include"
        for name, limit in demand_of(recipe).limits(whole).items()
        if found[name] > limit
    )
