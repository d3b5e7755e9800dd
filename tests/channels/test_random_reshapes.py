"""The slicing law on random chains that merge, split, reorder, sum and multiply the factors of one tensor."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from law import Case, analyzed, seeded_removals, violation

LARGEST = 1500
STEPS = ("reshape", "transpose", "scale", "project", "softmax", "halves", "double", "sum", "shuffle", "square")


@dataclass
class Chain:
    """A growing model; the current tensor has one list of factors for each dimension."""

    draw: st.DataObject
    sizes: list[list[int]]
    tensors: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    current: str = "x"

    @property
    def dims(self) -> list[int]:
        return [math.prod(factors) for factors in self.sizes]

    def number(self, low: int, high: int) -> int:
        return self.draw.draw(st.integers(low, high))

    def store(self, text: str) -> str:
        self.tensors.append(f"t{len(self.tensors)}={text}")
        return self.tensors[-1].partition("=")[0]

    def emit(self, expression: str) -> str:
        self.text.append(f"v{len(self.text)} = {expression}")
        return self.text[-1].partition(" ")[0]

    def step(self, name: str) -> None:
        place = self.number(0, len(self.sizes) - 1)
        getattr(self, f"_{name}")(place)

    def _reshape(self, place: int) -> None:
        flat = [factor for factors in self.sizes for factor in factors]
        cuts = sorted(self.draw.draw(st.sets(st.integers(1, max(len(flat) - 1, 1)), max_size=3)))
        self.sizes = [flat[a:b] for a, b in zip([0, *cuts], [*cuts, len(flat)], strict=True) if flat[a:b]]
        sizes = self.dims
        if self.number(0, 1):
            sizes[place % len(sizes)] = -1
        self.current = self.emit(f"Reshape({self.current}, {self.store(_integers(sizes))})")

    def _transpose(self, place: int) -> None:
        order = self.draw.draw(st.permutations(range(len(self.sizes))))
        self.sizes = [self.sizes[dim] for dim in order]
        self.current = self.emit(f"Transpose<perm=[{','.join(map(str, order))}]>({self.current})")

    def _scale(self, place: int) -> None:
        weight = self.store(",".join(map(str, self.dims[place:])))
        self.current = self.emit(f"Mul({self.current}, {weight})")

    def _project(self, place: int) -> None:
        if len(self.sizes) > 1:
            outputs = [self.number(2, 3), self.number(2, 3)]
            weight = self.store(f"{self.dims[-1]},{math.prod(outputs)}")
            self.current = self.emit(f"MatMul({self.current}, {weight})")
            self.sizes = [*self.sizes[:-1], outputs]

    def _softmax(self, place: int) -> None:
        self.current = self.emit(f"Softmax<axis={place}>({self.current})")

    def _halves(self, place: int) -> None:
        if self.sizes[place][0] % 2 == 0:
            number = len(self.text)
            self.text.append(f"l{number}, r{number} = Split<axis={place}>({self.current})")
            self.current = self.emit(f"Add(l{number}, r{number})")
            self.sizes[place] = [self.sizes[place][0] // 2, *self.sizes[place][1:]]

    def _double(self, place: int) -> None:
        if math.prod(self.dims) * 2 <= LARGEST:
            self.current = self.emit(f"Concat<axis={place}>({self.current}, {self.current})")
            self.sizes[place] = [2, *self.sizes[place]]

    def _sum(self, place: int) -> None:
        if len(self.sizes) > 2:
            self.current = self.emit(f"ReduceSum<keepdims=0>({self.current}, {self.store(_integers([place]))})")
            del self.sizes[place]

    def _shuffle(self, place: int) -> None:
        positions = self.draw.draw(st.permutations(range(self.dims[place])))
        self.current = self.emit(f"Gather<axis={place}>({self.current}, {self.store(_integers(positions))})")

    def _square(self, place: int) -> None:
        if len(self.sizes) > 2 and math.prod(self.dims[:-1]) * self.dims[-2] <= LARGEST:
            order = [*range(len(self.sizes) - 2), len(self.sizes) - 1, len(self.sizes) - 2]
            other = self.emit(f"Transpose<perm=[{','.join(map(str, order))}]>({self.current})")
            self.current = self.emit(f"MatMul({self.current}, {other})")
            self.sizes = [*self.sizes[:-1], list(self.sizes[-2])]


def _integers(values: list[int]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


@pytest.mark.parametrize("length", [3, 6, 10])
def test_random_chains_obey_the_law(length: int) -> None:
    checked = []

    @settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        factor = st.integers(2, 4)
        chain = Chain(data, data.draw(st.lists(st.lists(factor, min_size=1, max_size=2), min_size=2, max_size=4)))
        if math.prod(chain.dims) > LARGEST:
            return
        chain.tensors.append("x:" + ",".join(map(str, chain.dims)))
        for _ in range(length):
            chain.step(data.draw(st.sampled_from(STEPS)))
        chain.emit(f"Neg({chain.current})")
        case = Case("chain", " ".join(chain.tensors), " ".join(chain.text), "", run="runtime")
        channels = analyzed(case)
        checked.append(len(channels.prunable))
        for seed in range(2):
            assert violation(case, channels, seeded_removals(channels, seed), seed) <= 1e-4

    holds()
    assert sum(checked) > 10
