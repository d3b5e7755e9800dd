"""A graph without some of its blocks computes what the original does with these blocks bypassed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from onnxprune.channels.blocks import Block
from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gates import bypass
from onnxprune.surgery.gone import Gone
from onnxprune.validate.proof import TOLERANCE, Feeds, Places, ProofResult, in_float64, open_result, worse
from onnxprune.validate.unrounded import take_out_rounding


def prove_dropped(
    channels: Channels, blocks: Iterable[Block], dropped: Graph, feeds: Sequence[Feeds], options: SessionOptions
) -> ProofResult:
    """Returns the largest difference between the outputs of a graph without blocks and of the bypassed original.

    In the reference nothing is cleaned up and nothing renamed: what reads the exit of a block reads its entry, and the
    block computes what nobody reads.

    Raises:
        ModelError: ONNX Runtime cannot run the bypassed original.
        ValidationError: ONNX Runtime cannot run the result, though it runs the original.
    """
    reference, candidate = bypass(channels.graph, blocks), dropped.copy()
    for graph in (reference, candidate):
        take_out_rounding(graph)
    made = {tensor.name for node in candidate.nodes for tensor in node.outputs}
    places = Places(Gone(channels, {}), [], [tensor.name for tensor in candidate.outputs if tensor.name in made])
    plain = SessionOptions(options.provider, options.threads, optimize=False)
    expected, found = open_session(reference, plain), open_result(candidate, plain)
    worst = ProofResult(0.0, 0.0, TOLERANCE, "", len(feeds))
    beyond = []
    for feed in feeds:
        result = places.largest(expected.run(feed, places.names), found.run(feed, places.names))
        worst = replace(worse(worst, result), runs=len(feeds))
        if not result.within:
            beyond.append(feed)
    return in_float64(worst, (reference, candidate), beyond, places)
