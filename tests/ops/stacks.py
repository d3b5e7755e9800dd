"""Networks of several layers as ONNX text; sublayers can be left out, which is what dropping them must come to."""

from collections.abc import Collection, Iterator

import onnx
from onnx_text import model

PREAMBLE = "sh = Shape(x) t0 = Gather(sh, i1) "
"""The length of x, read once; every layer asks for the batch, as exporters write it."""

ROTARY = """
    pos = Range(i0, t0, i1) posf = Cast<to=1>(pos) pos1 = Unsqueeze(posf, i1v) ang1 = Mul(pos1, freq)
    ang = Concat<axis=-1>(ang1, ang1) cos = Cos(ang) sin = Sin(ang)
    col = Unsqueeze(pos, ax) row = Unsqueeze(pos, i1v) late = Greater(col, row) causal = Where(late, far, near)
"""
CONSTANTS = "i0=#0 i1=#1 ax={0} i1v={1} minus={-1} h={2} d={4} hd={8} scale=f#0.5 one=f#1 half=f#0.5 root=f#1.4142 "


def attention(place: int, source: str, mask: str, rotary: bool) -> Iterator[str]:
    """Yields four products, two heads of width 4, and a mask; the result is named ``p``."""
    p = f"_{place}"
    yield f"s{p} = Shape({source}) b{p} = Gather(s{p}, i0) bu{p} = Unsqueeze(b{p}, ax) "
    yield f"heads{p} = Concat<axis=0>(bu{p}, minus, h, d) merged{p} = Concat<axis=0>(bu{p}, minus, hd) "
    for side in "qkv":
        yield f"{side}{p} = MatMul({source}, w{side}{p}) {side}4{p} = Reshape({side}{p}, heads{p}) "
        yield f"{side}t{p} = Transpose<perm=[0,2,1,3]>({side}4{p}) "
    sides = ["q", "k"]
    for side in sides if rotary else ():
        yield f"{side}l{p}, {side}r{p} = Split<axis=-1>({side}t{p}) {side}n{p} = Neg({side}r{p}) "
        yield f"{side}o{p} = Concat<axis=-1>({side}n{p}, {side}l{p}) {side}c{p} = Mul({side}t{p}, cos) "
        yield f"{side}s{p} = Mul({side}o{p}, sin) {side}e{p} = Add({side}c{p}, {side}s{p}) "
    query, key = (f"{side}{'e' if rotary else 't'}{p}" for side in sides)
    yield f"ku{p} = Transpose<perm=[0,1,3,2]>({key}) g{p} = MatMul({query}, ku{p}) gs{p} = Mul(g{p}, scale) "
    yield f"gm{p} = Add(gs{p}, {mask}) a{p} = Softmax<axis=-1>(gm{p}) o{p} = MatMul(a{p}, vt{p}) "
    yield f"ot{p} = Transpose<perm=[0,2,1,3]>(o{p}) om{p} = Reshape(ot{p}, merged{p}) p{p} = MatMul(om{p}, wo{p}) "


def bert(layers: int = 2, without: Collection[str] = (), seed: int = 0) -> onnx.ModelProto:
    """Returns layers with the normalization behind each sum and a mask that is an input; ``a0`` is an attention."""
    tensors = [CONSTANTS, "x:N,5,8 mask:N,1,1,5 g=8 b=+8 wy=8,3 "]
    text, now = ["x0 = LayerNormalization<axis=-1>(x, g, b) inv = Sub(one, mask) m4 = Mul(inv, far) "], "x0"
    tensors.append("far=f#-10000 ")
    for place in range(layers):
        p = f"_{place}"
        tensors.append(f"wq{p}=8,8 wk{p}=8,8 wv{p}=8,8 wo{p}=8,8 bo{p}=8 lg{p}=8 lb{p}=8 ")
        tensors.append(f"w1{p}=8,16 b1{p}=16 w2{p}=16,8 b2{p}=8 mg{p}=8 mb{p}=8 ")
        if f"a{place}" not in without:
            text += attention(place, now, "m4", rotary=False)
            text.append(f"pb{p} = Add(p{p}, bo{p}) ra{p} = Add(pb{p}, {now}) ")
            text.append(f"ya{p} = LayerNormalization<axis=-1>(ra{p}, lg{p}, lb{p}) ")
            now = f"ya{p}"
        if f"m{place}" not in without:
            text.append(f"f{p} = MatMul({now}, w1{p}) fb{p} = Add(f{p}, b1{p}) fd{p} = Div(fb{p}, root) ")
            text.append(
                f"fe{p} = Erf(fd{p}) fo{p} = Add(fe{p}, one) fm{p} = Mul(fb{p}, fo{p}) fh{p} = Mul(fm{p}, half) "
            )
            text.append(f"f2{p} = MatMul(fh{p}, w2{p}) f2b{p} = Add(f2{p}, b2{p}) rm{p} = Add(f2b{p}, {now}) ")
            text.append(f"ym{p} = LayerNormalization<axis=-1>(rm{p}, mg{p}, mb{p}) ")
            now = f"ym{p}"
    text.append(f"y = MatMul({now}, wy)")
    return read("".join(tensors), "".join(text), seed)


def llama(layers: int = 2, without: Collection[str] = (), caches: bool = False) -> onnx.ModelProto:
    """Returns layers with a normalization at their start, rotary positions and a causal mask computed once."""
    tensors = [CONSTANTS, "x:N,T,8 freq=1,2 far=f#-10000 near=f#0 two=f#2 eps=f#0.001 gf=8 wy=8,3 "]
    text, now = [PREAMBLE, ROTARY], "x"
    for place in range(layers):
        p = f"_{place}"
        tensors.append(f"wq{p}=8,8 wk{p}=8,8 wv{p}=8,8 wo{p}=8,8 wg{p}=8,16 wu{p}=8,16 wd{p}=16,8 ga{p}=8 mg{p}=8 ")
        if f"a{place}" not in without:
            text += [norm(f"na{p}", now, f"ga{p}"), *attention(place, f"na{p}", "causal", rotary=True)]
            text.append(f"ya{p} = Add({now}, p{p}) ")
            text.append(f"present{p} = Identity(ke{p}) " if caches else "")
            now = f"ya{p}"
        if f"m{place}" not in without:
            text.append(norm(f"nm{p}", now, f"mg{p}"))
            text.append(f"u{p} = MatMul(nm{p}, wg{p}) us{p} = Sigmoid(u{p}) ui{p} = Mul(u{p}, us{p}) ")
            text.append(f"up{p} = MatMul(nm{p}, wu{p}) um{p} = Mul(ui{p}, up{p}) dn{p} = MatMul(um{p}, wd{p}) ")
            text.append(f"ym{p} = Add({now}, dn{p}) ")
            now = f"ym{p}"
    text += [norm("nf", now, "gf"), "y = MatMul(nf, wy)"]
    return read("".join(tensors), "".join(text))


def norm(name: str, source: str, gain: str) -> str:
    """Returns an RMS normalization, written out."""
    return (
        f"{name}_q = Pow({source}, two) {name}_m = ReduceMean<axes=[-1]>({name}_q) {name}_e = Add({name}_m, eps) "
        f"{name}_r = Sqrt({name}_e) {name}_n = Div({source}, {name}_r) {name} = Mul({name}_n, {gain}) "
    )


def residual(blocks: int = 3, without: Collection[int] = (), seed: int = 0) -> onnx.ModelProto:
    """Returns a convolution, blocks of two convolutions with a sum and a Relu, and a classifier."""
    tensors = ["x:N,3,8,8 ws=6,3,3,3 wy=5,6 by=5 "]
    text, now = ["c = Conv<pads=[1,1,1,1]>(x, ws) r = Relu(c) "], "r"
    for p in range(blocks):
        tensors.append(f"wa{p}=6,6,3,3 ba{p}=6 wb{p}=6,6,3,3 bb{p}=6 ")
        if p not in without:
            text.append(f"a{p} = Conv<pads=[1,1,1,1]>({now}, wa{p}, ba{p}) ar{p} = Relu(a{p}) ")
            text.append(f"b{p} = Conv<pads=[1,1,1,1]>(ar{p}, wb{p}, bb{p}) s{p} = Add(b{p}, {now}) r{p} = Relu(s{p}) ")
            now = f"r{p}"
    text.append(f"p = GlobalAveragePool({now}) f = Flatten(p) y = Gemm<transB=1>(f, wy, by)")
    return read("".join(tensors), "".join(text), seed)


def read(tensors: str, text: str, seed: int = 0) -> onnx.ModelProto:
    """Returns a model without the stored tensors that no node reads."""
    proto = model(tensors, text, seed=seed)
    used = {name for node in proto.graph.node for name in node.input}
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(stored)
    return proto
