"""Exports of the zoo, kept on disk, and what Torch-Pruning does with the same network."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn
from torch.nn import functional
from zoo_network import Architecture, Network, fill, settle

PATIENCE = 40
"""Seconds that Torch-Pruning gets for one network."""

logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Target:
    """How a network is exported."""

    exporter: str
    opset: int

    @property
    def free_batch(self) -> bool:
        """Both kinds of graph belong in the zoo: opsets 17 and 20 leave the batch free, 13 and 18 fix it."""
        return self.opset in (17, 20)


def cached(name: str, target: Target, cache: Path) -> Path:
    """Returns where the export of an architecture is kept."""
    return cache / (re.sub(r"\W+", "_", name) + f".{target.exporter}.{target.opset}.onnx")


def exported(architecture: Architecture, target: Target, cache: Path) -> Path | str:
    """Returns the file of an export, made now or earlier, or why there is none."""
    path = cached(architecture.name, target, cache)
    refusal = path.with_suffix(".refused")
    if path.exists():
        return path
    if refusal.exists():
        return refusal.read_text()
    try:
        if target.exporter in DERIVATIONS:
            source = exported(architecture, Target("torchscript", target.opset), cache)
            if isinstance(source, str):
                return source
            DERIVATIONS[target.exporter](source, path)
        else:
            _export(network_of(architecture), target, path)
    except TimeoutError:
        raise
    except Exception as error:  # an exporter may raise anything
        reason = _first_line(error)
        refusal.write_text(reason)
        return reason
    return path


def _optimize(source: Path, path: Path) -> None:
    """Writes the graph as ONNX Runtime rewrites it for the CPU: fused operators of the domain com.microsoft."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, ["CPUExecutionProvider"])


def _quantize(source: Path, path: Path) -> None:
    """Writes the model with weights and activations in int8, calibrated on random inputs."""
    model = onnx.load(source)
    rng = np.random.default_rng(0)
    feeds = [{value.name: _random(value, rng) for value in model.graph.input} for _ in range(2)]
    quantize_static(
        model, path, _Feeds(feeds), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8
    )


def _random(value: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    kind = value.type.tensor_type
    shape = [dim.dim_value or 2 for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return np.ones(shape, dtype) if dtype.kind in "iub" else rng.standard_normal(shape).astype(dtype)


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next feed."""
        return next(self._feeds, None)


DERIVATIONS = {"ort": _optimize, "int8": _quantize}
"""Files that are made from an export."""


def network_of(architecture: Architecture) -> Network:
    """Returns the network with seeded random weights, ready to infer."""
    torch.manual_seed(0)
    network = architecture.build()
    network.module.eval()
    fill(network.module)
    if network.batch:
        settle(network)
    return network


def _export(network: Network, target: Target, path: Path) -> None:
    partial = path.with_suffix(".partial")
    dynamo = target.exporter == "dynamo"
    free = network.batch and target.free_batch
    with warnings.catch_warnings(), _silence(), torch.no_grad():
        warnings.simplefilter("ignore")
        for batch in (True, False) if free else (False,):
            try:
                _call(network, target, partial, dynamo, batch)
            except TimeoutError:
                raise
            except Exception:
                if not batch:
                    raise
            else:
                break
    partial.replace(path)


def _call(network: Network, target: Target, path: Path, dynamo: bool, batch: bool) -> None:
    torch.backends.mha.set_fastpath_enabled(False)  # the fused operator of inference has no ONNX form
    common: dict[str, Any] = {"input_names": list(network.names), "opset_version": target.opset, "dynamo": dynamo}
    if dynamo:
        free = tuple({0: torch.export.Dim.AUTO} for _ in network.inputs) if batch else None
        inputs = tuple(torch.cat([value] * 2) for value in network.inputs) if batch else network.inputs
        if _takes_any(network.module) and free is not None:
            free = (free,)
        torch.onnx.export(
            network.module, inputs, str(path), dynamic_shapes=free, external_data=False, verbose=False, **common
        )
        return
    axes = {name: {0: "batch"} for name in network.names} if batch else None
    with _plain_attention() if target.opset < 14 else contextlib.nullcontext():
        torch.onnx.export(network.module, network.inputs, str(path), dynamic_axes=axes, **common)


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in its parts: exporters have no form of the fused function before opset 14."""
    fused = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if enable_gqa:
        repeats = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    weights = query @ key.transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool).tril()
        weights = weights.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, torch.finfo(weights.dtype).min)
    elif attn_mask is not None:
        weights = weights + attn_mask
    return weights.softmax(-1) @ value


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises ``TimeoutError`` after that many seconds; limits may be nested."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    left = signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(left)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Exporters print whole graphs from C++ where they fail."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            for source, target in zip(kept, (1, 2), strict=True):
                os.dup2(source, target)
                os.close(source)


def _takes_any(module: nn.Module) -> bool:
    return bool(module.forward.__code__.co_flags & 0x04)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def torch_pruning_share(architecture: Architecture, cache: Path) -> str:
    """Returns the share of the MACs that Torch-Pruning removes at 0.5, or what it fails with."""
    stored = cache / (re.sub(r"\W+", "_", architecture.name) + ".torch_pruning.json")
    if not stored.exists():
        outcome = {"share": "fails", "reason": ""}
        try:
            with time_limit(PATIENCE), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome["share"] = _torch_pruning(network_of(architecture))
        except TimeoutError:
            outcome = {"share": f"> {PATIENCE} s", "reason": "too slow"}
        except Exception as error:  # whatever it raises is its result
            outcome["reason"] = _first_line(error)
        stored.write_text(json.dumps(outcome))
    return str(json.loads(stored.read_text())["share"])


def _torch_pruning(network: Network) -> str:
    import torch_pruning

    module = copy.deepcopy(network.module)
    inputs: Any = network.inputs if len(network.inputs) > 1 else network.inputs[0]
    with torch.no_grad():
        before = [tuple(value.shape) for value in _tensors(module(*network.inputs))]
    ignored = _last(module, network.inputs)
    macs, _ = torch_pruning.utils.count_ops_and_params(module, inputs)
    pruner = torch_pruning.pruner.MagnitudePruner(
        module, inputs, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=ignored,
    )  # fmt: skip
    pruner.step()
    after, _ = torch_pruning.utils.count_ops_and_params(module, inputs)
    with torch.no_grad():
        shapes = [tuple(value.shape) for value in _tensors(module(*network.inputs))]
    return f"{1 - after / macs:.1%}" + ("" if shapes == before else " shape!")


def _last(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[nn.Module]:
    """Finds the layers whose results are outputs; where none is directly, the one that runs last."""
    ran: list[tuple[nn.Module, int]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: ran.append((layer, out.untyped_storage().data_ptr())))
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv1d | nn.Conv3d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        ends = {value.untyped_storage().data_ptr() for value in _tensors(module(*inputs))}
    for hook in hooks:
        hook.remove()
    found = [layer for layer, where in ran if where in ends]
    return [*found, *(layer for layer, _ in ran[-1:])]


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values if value is not None for tensor in _tensors(value)]
