"""Time per node, from the profiler of ONNX Runtime."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import UsageError
from onnxprune.runtime.session import SessionOptions, open_session

_SUFFIX = "_kernel_time"


def profile(
    model: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    options: SessionOptions | None = None,
    runs: int = 5,
) -> dict[str, float]:
    """Returns milliseconds per run of every node, by the name that ONNX Runtime gives it.

    With ``optimize=False`` these are the node names of the model (operator and index where it has none); optimizations
    fuse and rename nodes. The mean is over ``runs`` runs after one that is left out. A node with a subgraph includes
    the nodes inside, which are also listed.

    Raises:
        UsageError: ``runs`` is not positive.
        ModelError: The model does not load, or does not run on the feeds.
    """
    if runs < 1:
        raise UsageError(f"the number of profiled runs is {runs}, but must be at least 1")
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        prefix = str(Path(folder) / "profile")
        session = open_session(model, replace(options or SessionOptions(), profile_prefix=prefix))
        try:
            for _ in range(runs + 1):
                session.run(feeds)
        finally:
            path = session.end_profiling()
        events = json.loads(path.read_text(encoding="utf-8"))
    return _milliseconds(events, runs)


def _milliseconds(events: list[dict[str, Any]], runs: int) -> dict[str, float]:
    ends = [event["ts"] + event["dur"] for event in events if event.get("name") == "model_run"]
    warm = min(ends, default=0)
    result: dict[str, float] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX) or event["ts"] < warm:
            continue
        node = name.removesuffix(_SUFFIX)
        result[node] = result.get(node, 0.0) + event["dur"] / 1000 / runs
    return result
