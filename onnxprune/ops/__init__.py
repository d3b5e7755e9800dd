"""Everything that is known about operators, one module a family.

A family module registers channel rules, MAC rules and value rules. Other rooms look operators up here.
"""

from onnxprune.channels.registry import MacRule, NodeView, Operator, Value, operator

__all__ = ["MacRule", "NodeView", "Operator", "Value", "operator"]
