"""Every operator with a channel rule, in every form that it had in opsets 7 to 25.

A case of the table stands for a form if the checker accepts its text at an opset of that form.
"""

import dataclasses
import functools

import onnx
import pytest
from cases import CASES
from law import LIMIT, Case, analyzed, expected_groups, seeded_removals, violation
from onnx.reference.op_run import RuntimeContextError

from onnxprune.channels.registry import operators
from onnxprune.errors import ModelError

OLDEST, NEWEST = 7, 25
TRIED = 2
"""Cases that are tried for one form."""

NOTHING_RUNS_IT = {("GlobalLpPool", 22), ("MaxRoiPool", 22)}

ANOTHER_MEANING = {"DFT", "Hardmax", "LogSoftmax", "Softmax"}
"""Operators that older opsets apply to other axes by default, so that other axes are free than the case says."""

CANNOT_RUN = (ModelError, NotImplementedError, RuntimeContextError, RuntimeError, TypeError, AttributeError)


@functools.cache
def forms() -> dict[tuple[str, int], tuple[int, int]]:
    """Returns (operator, version) and the opsets, first and last, in which that version is in effect."""
    versions: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in operators() and operators()[schema.name].channels is not None:
            versions.setdefault(schema.name, []).append(schema)
    found = {}
    for name, schemas in versions.items():
        schemas.sort(key=lambda schema: schema.since_version)
        ends = [schema.since_version - 1 for schema in schemas[1:]] + [NEWEST]
        for schema, end in zip(schemas, ends, strict=True):
            span = max(schema.since_version, OLDEST), min(end, NEWEST)
            if span[0] <= span[1] and not schema.deprecated:
                found[name, schema.since_version] = span
    return found


def accepted(case: Case) -> bool:
    try:
        onnx.checker.check_model(case.proto(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, *CANNOT_RUN):
        return False
    return True


@functools.cache
def witnesses(name: str, version: int) -> tuple[Case, ...]:
    """Returns cases in which the operator has this form, those first that have something to remove."""
    first, last = forms()[name, version]
    found: list[Case] = []
    for case in sorted(CASES, key=lambda case: not any(exact for exact, *_ in expected_groups(case))):
        opset = min(max(case.opset, first), last)
        moved = dataclasses.replace(case, opset=opset)
        if name in case.operators and len(found) < TRIED and accepted(moved):
            found.append(moved)
    return tuple(found)


def difference(case: Case) -> float | None:
    """Returns the violation of the law by one removal of everything that can go; ``None`` where nothing can run it."""
    for how in dict.fromkeys(("runtime", case.run, "float")):
        tried = dataclasses.replace(case, run=how)
        if not accepted(tried):
            continue
        try:
            channels = analyzed(tried)
            return violation(tried, channels, seeded_removals(channels, 0)) / LIMIT[how]
        except CANNOT_RUN:
            continue
    return None


@pytest.mark.parametrize(("name", "version"), sorted(forms()), ids=lambda value: str(value))
def test_every_form(name: str, version: int) -> None:
    cases = witnesses(name, version)
    assert cases
    results = []
    for case in cases:
        channels = analyzed(case)
        expected = sorted(units for exact, _, _, units, _ in expected_groups(case) if exact)
        found = sorted(group.units for group in channels.prunable)
        assert found == expected or (found and name in ANOTHER_MEANING)
        if expected:
            results.append(difference(case))
    assert all(result is None or result <= 1 for result in results)
    if results:
        assert any(result is not None for result in results) == ((name, version) not in NOTHING_RUNS_IT)
