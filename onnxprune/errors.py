"""Every error that a user can meet, with its exit code.

A message says what is wrong, where, and the way out, in one sentence.
"""


class OnnxPruneError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(OnnxPruneError):
    """Options that are unknown, impossible or missing, or an output that is in the way."""

    exit_code = 2


class SelectorError(UsageError):
    """A selector that matches nothing."""


class ModelError(OnnxPruneError):
    """The model is invalid, unreadable or cannot be run."""

    exit_code = 3


class UnsupportedOpError(ModelError):
    """No provider of ONNX Runtime runs an operator of the model."""


class CalibrationError(OnnxPruneError):
    """The samples are unreadable or do not fit the model."""

    exit_code = 3


class PlanError(OnnxPruneError):
    """The plan does not fit the model, or nothing can be removed."""

    exit_code = 4


class ProviderError(OnnxPruneError):
    """A runtime or an execution provider is missing."""

    exit_code = 5


class OutputError(OnnxPruneError):
    """The output cannot be written."""

    exit_code = 6


class SurgeryError(OnnxPruneError):
    """The surgery did not produce the network it promised; nothing is written."""

    exit_code = 7


class ValidationError(SurgeryError):
    """The proof failed: the sliced model differs from the masked original."""
