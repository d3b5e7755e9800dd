"""What is asked of a plan: a fraction of the units, or what may stay of the cost."""

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune import arguments
from onnxprune.channels.facts import Index
from onnxprune.errors import PlanError, UsageError
from onnxprune.model.cost import Cost
from onnxprune.plan.sizes import Savings, Sizes


@dataclass(frozen=True, slots=True)
class Demand:
    """Either the ``ratio`` of units to remove, or what may stay: fractions below or at 1, absolute numbers above."""

    ratio: float | None = None
    macs: float | None = None
    parameters: float | None = None

    @classmethod
    def of(cls, ratio: object, max_macs: object, max_params: object) -> "Demand":
        """Returns what a caller asks for, in plain values.

        Raises:
            UsageError: a value is out of range, or not exactly one kind of demand is given.
        """
        demand = cls(
            arguments.optional(arguments.fraction, ratio, "the pruning ratio"),
            arguments.optional(arguments.amount_of_macs, max_macs, "--max-macs"),
            arguments.optional(arguments.amount_of_parameters, max_params, "--max-params"),
        )
        if (demand.ratio is None) == (demand.macs is None and demand.parameters is None):
            raise UsageError("give either the pruning ratio or what may stay, by --max-macs or --max-params")
        return demand

    def __str__(self) -> str:
        parts = [f"{name} {value:g}" for name, value in self._given()]
        return " and ".join(parts)

    @property
    def asks(self) -> bool:
        """Whether there is anything to remove."""
        return self.ratio is None or self.ratio > 0

    def options(self) -> dict[str, float]:
        """Returns what was asked for, by the name of the option."""
        return {name.replace(" ", "_"): value for name, value in self._given()}

    def excess(self, sizes: Sizes) -> Callable[[Index], float]:
        """Returns what judges removed units of all groups: what stays as a fraction of what may, 1 where just met."""
        if self.ratio is not None:
            total = int(sizes.units.sum())
            limit = max(total - round(self.ratio * total), 1)
            return lambda removed: (total - int(removed.sum())) / limit
        every = sizes.units * 0
        self._check(sizes.macs(every))
        limits = [
            (_limit(amount, size(every)), size)
            for amount, size in ((self.macs, sizes.macs), (self.parameters, sizes.parameters))
            if amount is not None
        ]
        return lambda removed: max(size(removed) / limit for limit, size in limits)

    def absolute(self, whole: Cost) -> "Demand":
        """Returns the same with what may stay of a model of that cost in numbers instead of fractions."""
        limits = {name: max(limit, 1 + 1e-9) for name, limit in self.limits(whole).items()}  # 1 would be a fraction
        return Demand(self.ratio, limits.get("max macs"), limits.get("max params"))

    def limits(self, whole: Cost) -> dict[str, float]:
        """Returns what may stay of a model of that cost, by the name of the option.

        Raises:
            PlanError: multiply-accumulates are asked for, and there are none that could be counted.
        """
        self._check(whole.macs)
        named = (("max macs", self.macs, whole.macs), ("max params", self.parameters, whole.parameters))
        return {name: _limit(amount, size) for name, amount, size in named if amount is not None}

    def savings(self, sizes: Sizes) -> Savings:
        """Returns what the next units save of that which is asked for: parameters, if they alone are; else MACs."""
        return sizes.parameters_saved() if self.parameters is not None and self.macs is None else sizes.macs_saved()

    def _check(self, macs: int) -> None:
        if self.macs is not None and macs == 0:
            raise PlanError("no multiply-accumulates can be counted in this model: give --max-params or --channels")

    def _given(self) -> list[tuple[str, float]]:
        named = (("ratio", self.ratio), ("max macs", self.macs), ("max params", self.parameters))
        return [(name, value) for name, value in named if value is not None]


def _limit(amount: float, whole: int) -> float:
    return amount if amount > 1 else amount * whole
