"""Small networks with the patterns that real exports contain, and the units that must be prunable in them."""

from dataclasses import dataclass

# ruff: noqa: E501


@dataclass(frozen=True)
class Network:
    """Tensors and ONNX text as in ``onnx_text``; ``units`` are those of every prunable group, sorted."""

    name: str
    tensors: str
    text: str
    units: str
    opset: int = 17


HEAD = " p = GlobalAveragePool({0}) f = Flatten(p) y = Gemm<transB=1>(f, wy, by)"
ATTENTION = """
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    q4 = Reshape(q, heads) k4 = Reshape(k, heads) v4 = Reshape(v, heads)
    qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
    s = MatMul(qt, kt) sd = Mul(s, scale) a = Softmax(sd) o = MatMul(a, vt)
    ot = Transpose<perm=[0,2,1,3]>(o) om = Reshape(ot, merged) y = MatMul(om, wo)
"""
QKV = "x:N,5,6 wq=6,12 wk=6,12 wv=6,12 wo=12,6 scale=1"
COMPUTED = """
    shape = Shape(x) n1 = Gather(shape, zero) t1 = Gather(shape, one) n = Unsqueeze(n1, axis) t = Unsqueeze(t1, axis)
    heads = Concat<axis=0>(n, t, h, d) merged = Concat<axis=0>(n, t, hd)
"""
COUNTED = "a = MatMul(x, w) s = Shape(a) c = Gather(s, two) "
MEAN = "a = MatMul(x, w) c = Mul(a, b) n = Size(c) f = Cast<to=1>(n) t = ReduceSum(c, d) y = Div(t, f)"
WIDTH = QKV.replace(" scale=1", "") + " two=#2 three=#3 power=f#-0.5 heads={0,5,3,4} merged={0,5,12}"
WIDTH_SCALE = ATTENTION.replace(
    "s = MatMul",
    "ws = Shape(q) w = Gather(ws, two) hd = Div(w, three) hf = Cast<to=1>(hd) scale = Pow(hf, power) s = MatMul",
)
WINDOW = """
    w1 = Reshape(x, cut) w2 = Transpose<perm=[0,1,3,2,4,5]>(w1) w3 = Reshape(w2, rows)
    qkv = MatMul(w3, wqkv) qkvb = Add(qkv, bqkv) r = Reshape(qkvb, split) rt = Transpose<perm=[2,0,3,1,4]>(r)
    q = Gather<axis=0>(rt, i0) k = Gather<axis=0>(rt, i1) v = Gather<axis=0>(rt, i2)
    qs = Mul(q, scale) kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(qs, kt)
    bias = Gather(table, positions) b2 = Reshape(bias, square) b3 = Transpose<perm=[2,0,1]>(b2) b4 = Unsqueeze(b3, i0v)
    sb = Add(s, b4) a = Softmax(sb) o = MatMul(a, v) ot = Transpose<perm=[0,2,1,3]>(o) om = Reshape(ot, tokens)
    p = MatMul(om, wo) u1 = Reshape(p, uncut) u2 = Transpose<perm=[0,1,3,2,4,5]>(u1) y = Reshape(u2, back)
"""

NETWORKS = (
    Network("plain", "x:N,3,8,8 w=8,3,3,3 b=8 s=8 t=8 m=8 v=+8 w2=6,8,3,3 wy=5,6 by=5",
            "a = Conv(x, w, b) n = BatchNormalization(a, s, t, m, v) r = Relu(n) c = Conv(r, w2) " + HEAD.format("c"), "6 8"),
    Network("residual", "x:N,3,8,8 w=8,3,1,1 w2=6,8,3,3 w3=8,6,3,3 wy=5,8 by=5",
            "a = Conv(x, w) b = Conv<pads=[1,1,1,1]>(a, w2) r = Relu(b) c = Conv<pads=[1,1,1,1]>(r, w3) d = Add(a, c) " + HEAD.format("d"), "6 8"),
    Network("squeeze_excite", "x:N,3,8,8 w=8,3,3,3 w1=4,8,1,1 b1=4 w2=8,4,1,1 b2=8 wy=5,8 by=5",
            "a = Conv(x, w) g = GlobalAveragePool(a) e = Conv(g, w1, b1) r = Relu(e) u = Conv(r, w2, b2) z = Sigmoid(u) m = Mul(a, z) " + HEAD.format("m"), "4 8"),
    Network("dense", "x:N,3,6,6 w=4,3,1,1 w2=5,4,3,3 w3=6,9,3,3 s=9 t=9 m=9 v=+9 wy=5,15 by=5",
            "a = Conv(x, w) b = Conv<pads=[1,1,1,1]>(a, w2) c = Concat<axis=1>(a, b) n = BatchNormalization(c, s, t, m, v) "
            "d = Conv<pads=[1,1,1,1]>(n, w3) e = Concat<axis=1>(c, d) " + HEAD.format("e"), "4 5 6"),
    Network("c2f", "x:N,3,6,6 w=8,3,1,1 w2=4,4,3,3 w3=4,4,3,3 w4=6,12,1,1 wy=5,6 by=5",
            "a = Conv(x, w) l, r = Split<axis=1>(a) b = Conv<pads=[1,1,1,1]>(r, w2) c = Conv<pads=[1,1,1,1]>(b, w3) d = Add(r, c) "
            "e = Concat<axis=1>(l, r, d) g = Conv(e, w4) " + HEAD.format("g"), "4 4 4 6"),
    Network("split_uneven", "x:N,3,6,6 w=9,3,1,1 sizes={3,6} w2=4,3,1,1 w3=4,6,1,1 wy=5,4 by=5",
            "a = Conv(x, w) l, r = Split<axis=1>(a, sizes) b = Conv(l, w2) c = Conv(r, w3) d = Add(b, c) " + HEAD.format("d"), "3 4 6"),
    Network("split_outputs", "x:N,3,6,6 w=7,3,1,1 w2=4,4,1,1 w3=4,3,1,1 wy=5,4 by=5",
            "a = Conv(x, w) l, r = Split<axis=1, num_outputs=2>(a) b = Conv(l, w2) c = Conv(r, w3) d = Add(b, c) " + HEAD.format("d"), "3 4 4", 18),
    Network("option_a_shortcut", "x:N,3,8,8 w=4,3,3,3 w2=8,4,3,3 wy=5,8 by=5 start={0,0} end={2147483647,2147483647} axes={2,3} step={2,2} pads={0,2,0,0,0,2,0,0}",
            "a = Conv<pads=[1,1,1,1]>(x, w) b = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2) t = Slice(a, start, end, axes, step) "
            "q = Pad(t, pads) d = Add(b, q) r = Relu(d) " + HEAD.format("r"), "4 4"),
    Network("shuffle", "x:N,3,6,6 w=8,3,1,1 w2=8,4,1,1 w3=8,1,3,3 w4=8,4,1,1 to={0,2,4,6,6} back={0,8,6,6} wy=5,8 by=5",
            "a = Conv(x, w) b = Conv<group=2>(a, w2) r = Reshape(b, to) t = Transpose<perm=[0,2,1,3,4]>(r) k = Reshape(t, back) "
            "c = Conv<group=8, pads=[1,1,1,1]>(k, w3) d = Conv<group=2>(c, w4) " + HEAD.format("d"), "4 8 8"),
    Network("shuffle_residual", "x:N,3,6,6 w=8,3,1,1 w2=8,4,1,1 w4=8,4,1,1 to={-1,2,4,6,6} back={-1,8,6,6} wy=5,8 by=5",
            "a = Conv(x, w) b = Conv<group=2>(a, w2) r = Reshape(b, to) t = Transpose<perm=[0,2,1,3,4]>(r) k = Reshape(t, back) "
            "d = Conv<group=2>(k, w4) e = Add(a, d) " + HEAD.format("e"), "4 8"),
    Network("attention", QKV + " heads={0,5,3,4} merged={0,5,12}", ATTENTION, "3"),
    Network("attention_biased", QKV + " bq=12 wp=6,8 bp=8 wr=8,6 heads={0,-1,3,4} merged={0,-1,12}",
            "i = MatMul(x, wp) ib = Add(i, bp) ir = Relu(ib) j = MatMul(ir, wr)" + ATTENTION.replace("(x,", "(j,").replace("k4 =", "kb = Add(k, bq) k4 =").replace("(k, heads)", "(kb, heads)"), "3 6 8"),
    Network("attention_computed", QKV.replace("N,5", "N,T") + " zero=#0 one=#1 axis={0} h={3} d={4} hd={12}", COMPUTED + ATTENTION, "3"),
    Network("attention_rest", QKV.replace("N,5", "N,T") + " zero=#0 one=#1 axis={0} h={3} d={4} hd={-1}", COMPUTED + ATTENTION, "3"),
    Network("attention_same_shape_twice", QKV + " wq2=6,8 wo2=8,6 heads={0,5,4,2} merged={0,5,8}",
            ATTENTION.replace("wq)", "wq2)").replace("wk)", "wq2)").replace("wv)", "wq2)").replace("wo)", "wo2)"), "4"),
    Network("fused_qkv_gather", "x:N,5,6 w=6,36 b=36 wo=12,6 scale=1 to={0,5,3,3,4} merged={0,5,12} i0=#0 i1=#1 i2=#2",
            "p = MatMul(x, w) pb = Add(p, b) r = Reshape(pb, to) t = Transpose<perm=[2,0,3,1,4]>(r) q = Gather(t, i0) k = Gather(t, i1) v = Gather(t, i2) "
            "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) sd = Mul(s, scale) a = Softmax(sd) o = MatMul(a, v) "
            "ot = Transpose<perm=[0,2,1,3]>(o) om = Reshape(ot, merged) y = MatMul(om, wo)", "3"),
    Network("fused_qkv_split", "x:N,5,6 w=6,36 b=36 wo=12,6 scale=1 heads={0,5,3,4} merged={0,5,12} sizes={12,12,12}",
            "p = MatMul(x, w) pb = Add(p, b) q, k, v = Split<axis=-1>(pb, sizes)" + " " + ATTENTION[ATTENTION.index("q4"):], "3"),
    Network("fused_qkv_split_heads", "x:N,5,6 w=6,36 wo=12,6 scale=1 to={0,5,3,12} merged={0,5,12}",
            "p = MatMul(x, w) r = Reshape(p, to) t = Transpose<perm=[0,2,1,3]>(r) q, k, v = Split<axis=3>(t) kt = Transpose<perm=[0,1,3,2]>(k) "
            "s = MatMul(q, kt) sd = Mul(s, scale) a = Softmax(sd) o = MatMul(a, v) ot = Transpose<perm=[0,2,1,3]>(o) om = Reshape(ot, merged) y = MatMul(om, wo)", "3"),
    Network("grouped_query", "x:N,5,6 wq=6,16 wk=6,8 wv=6,8 wo=16,6 hq={0,5,4,4} hk={0,5,2,4} wide={0,2,2,5,4} flat={0,4,5,4} new={2} merged={0,5,16} many={1,1,2,1,1}",
            "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, hq) k4 = Reshape(k, hk) v4 = Reshape(v, hk) "
            "qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4) "
            "ku = Unsqueeze(kt, new) ke = Expand(ku, many) kf = Reshape(ke, flat) vu = Unsqueeze(vt, new) ve = Expand(vu, many) vf = Reshape(ve, flat) "
            "kft = Transpose<perm=[0,1,3,2]>(kf) s = MatMul(qt, kft) a = Softmax(s) o = MatMul(a, vf) ot = Transpose<perm=[0,2,1,3]>(o) om = Reshape(ot, merged) y = MatMul(om, wo)", "2"),
    Network("einsum_attention", "x:N,5,6 wq=6,3,4 wk=6,3,4 wv=6,3,4 wo=3,4,6",
            'q = Einsum<equation="btc,chd->bhtd">(x, wq) k = Einsum<equation="btc,chd->bhtd">(x, wk) v = Einsum<equation="btc,chd->bhtd">(x, wv) '
            's = Einsum<equation="bhqd,bhkd->bhqk">(q, k) a = Softmax(s) o = Einsum<equation="bhqk,bhkd->bhqd">(a, v) y = Einsum<equation="bhtd,hdc->btc">(o, wo)', "3 4 4"),
    Network("class_token", "x:N,3,8,8 w=6,3,4,4 token=1,1,6 place=1,5,6 w1=6,8 b1=8 w2=8,6 wy=6,3 s={0,0,-1} zero=#0 axis={0} ones={1,1} first=#0",
            "a = Conv<strides=[4,4]>(x, w) r = Reshape(a, s) t = Transpose<perm=[0,2,1]>(r) shape = Shape(t) n = Gather(shape, zero) nu = Unsqueeze(n, axis) "
            "to = Concat<axis=0>(nu, ones) e = Expand(token, to) k = Concat<axis=1>(e, t) j = Add(k, place) h = MatMul(j, w1) hb = Add(h, b1) g = Relu(hb) "
            "u = MatMul(g, w2) res = Add(j, u) c = Gather<axis=1>(res, first) y = MatMul(c, wy)", "6 8"),
    Network("windowed_attention", "x:N,4,4,6 wqkv=6,36 bqkv=36 wo=12,6 scale=1 table=9,3 positions={0,1,2,3,4,5,6,7,8,0,1,2,3,4,5,6} cut={-1,2,2,2,2,6} rows={-1,4,6} "
            "split={-1,4,3,3,4} i0=#0 i1=#1 i2=#2 square={4,4,-1} i0v={0} tokens={-1,4,12} uncut={-1,2,2,2,2,6} back={-1,4,4,6}", WINDOW, "3"),
    Network("decomposed_layer_norm", "x:N,5,6 we=6,8 s=8 t=8 eps=1 two=f#2.0 w1=8,12 b1=12 w2=12,8 wy=8,3",
            "e = MatMul(x, we) m = ReduceMean<axes=[-1]>(e) d = Sub(e, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q) ve = Abs(eps) vp = Add(v, ve) r = Sqrt(vp) n = Div(d, r) "
            "ns = Mul(n, s) nt = Add(ns, t) h = MatMul(nt, w1) hb = Add(h, b1) g = Relu(hb) u = MatMul(g, w2) z = Add(e, u) y = MatMul(z, wy)", "12"),
    Network("layer_norm", "x:N,5,6 s=6 t=6 w1=6,12 b1=12 w2=12,6",
            "n = LayerNormalization(x, s, t) h = MatMul(n, w1) hb = Add(h, b1) e = Erf(hb) g = Mul(hb, e) u = MatMul(g, w2) y = Add(x, u)", "12"),
    Network("vit_block", "x:N,5,6 we=6,8 s1=8 t1=8 wq=8,12 wk=8,12 wv=8,12 wo=12,8 s2=8 t2=8 w1=8,400 b1=400 w2=400,8 s3=8 t3=8 wy=8,3 scale=1 heads={0,5,3,4} merged={0,5,12}",
            "e = MatMul(x, we) n = LayerNormalization(e, s1, t1)" + ATTENTION.replace("(x,", "(n,").replace("y =", "o1 =") + "e1 = Add(e, o1) n2 = LayerNormalization(e1, s2, t2) "
            "h = MatMul(n2, w1) hb = Add(h, b1) g = Relu(hb) u = MatMul(g, w2) z = Add(e1, u) n3 = LayerNormalization(z, s3, t3) y = MatMul(n3, wy)", "3 8 400"),
    Network("vit_block_in_parts", "x:N,T,6 we=6,8 s=8 t=8 eps=+() two=f#2.0 w1=8,400 b1=400 w2=400,8 wy=8,3",
            "e = MatMul(x, we) m = ReduceMean<axes=[-1]>(e) d = Sub(e, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q) vp = Add(v, eps) r = Sqrt(vp) n = Div(d, r) "
            "ns = Mul(n, s) nt = Add(ns, t) h = MatMul(nt, w1) hb = Add(h, b1) g = Relu(hb) u = MatMul(g, w2) z = Add(e, u) y = MatMul(z, wy)", "8 400", 13),
    Network("post_norm", "x:N,T,6 we=6,8 w1=8,200 b1=200 w2=200,8 s=8 t=8 wy=8,3",
            "e = MatMul(x, we) h = MatMul(e, w1) hb = Add(h, b1) g = Relu(hb) u = MatMul(g, w2) z = Add(e, u) n = LayerNormalization(z, s, t) y = MatMul(n, wy)", "8 200"),
    Network("rms_norm_in_parts", "x:N,T,6 we=6,8 s=8 eps=+() d={-1} w1=8,200 wg=8,200 w2=200,8 wy=8,3",
            "e = MatMul(x, we) q = Mul(e, e) m = ReduceMean(q, d) vp = Add(m, eps) r = Sqrt(vp) i = Reciprocal(r) n = Mul(e, i) ns = Mul(s, n) h = MatMul(ns, w1) k = MatMul(ns, wg) "
            "g = Sigmoid(k) p = Mul(h, g) u = MatMul(p, w2) z = Add(e, u) y = MatMul(z, wy)", "8 200", 18),
    Network("convnext_block", "x:N,3,8,8 w=8,3,2,2 b=8 dw=8,1,3,3 s=8 t=8 w1=8,300 b1=300 w2=300,8 gamma=8 s2=8 t2=8 wy=5,8 by=5",
            "a = Conv<strides=[2,2]>(x, w, b) c = Conv<group=8, pads=[1,1,1,1]>(a, dw) l = Transpose<perm=[0,2,3,1]>(c) n = LayerNormalization(l, s, t) h = MatMul(n, w1) hb = Add(h, b1) "
            "g = Relu(hb) u = MatMul(g, w2) ug = Mul(u, gamma) r = Transpose<perm=[0,3,1,2]>(ug) z = Add(a, r) p = GlobalAveragePool(z) f = Flatten(p) k = LayerNormalization(f, s2, t2) "
            "y = Gemm<transB=1>(k, wy, by)", "8 300"),
    Network("global_response_norm", "x:N,3,8,8 w=8,3,2,2 b=8 s=8 t=8 w1=8,40 b1=40 gamma=40 beta=40 eps=+() w2=40,8 wy=5,8 by=5",
            "a = Conv<strides=[2,2]>(x, w, b) l = Transpose<perm=[0,2,3,1]>(a) h = MatMul(l, w1) hb = Add(h, b1) g = Relu(hb) gx = ReduceL2<axes=[1,2]>(g) m = ReduceMean<axes=[-1]>(gx) "
            "me = Add(m, eps) nx = Div(gx, me) i = Mul(g, nx) ig = Mul(i, gamma) ib = Add(ig, beta) j = Add(g, ib) u = MatMul(j, w2) r = Transpose<perm=[0,3,1,2]>(u) z = Add(a, r) " + HEAD.format("z"), "8 40"),
    Network("spatial_gating", "x:N,5,200 w=200,24 b=24 s=12 t=12 wt=5,5 w2=12,200 axis={0}",
            "h = MatMul(x, w) hb = Add(h, b) k, v = Split<axis=-1>(hb) n = LayerNormalization(v, s, t) m = Transpose<perm=[0,2,1]>(n) o = MatMul(m, wt) r = Transpose<perm=[0,2,1]>(o) "
            "g = Mul(k, r) y = MatMul(g, w2)", "12"),
    Network("joined_before_norm", "x:N,5,320 wa=320,8 wb=320,6 s=14 t=14 w2=14,320",
            "a = MatMul(x, wa) b = MatMul(x, wb) r = Relu(b) c = Concat<axis=-1>(a, r) n = LayerNormalization(c, s, t) y = MatMul(n, w2)", "6 8"),
    Network("mean_of_tokens", "x:N,5,6 we=6,8 w1=8,12", "e = MatMul(x, we) m = ReduceMean<axes=[1], keepdims=0>(e) y = MatMul(m, w1)", "8"),
    Network("gated_unit", "x:N,5,6 wg=6,12 wu=6,12 wd=12,6", "g = MatMul(x, wg) u = MatMul(x, wu) sg = Sigmoid(g) a = Mul(g, sg) p = Mul(a, u) y = MatMul(p, wd)", "12"),
    Network("gated_halves", "x:N,5,6 w=6,24 wd=12,6", "h = MatMul(x, w) l, r = Split<axis=-1>(h) sg = Sigmoid(r) p = Mul(l, sg) y = MatMul(p, wd)", "12"),
    Network("gated_slices", "x:N,5,6 w=6,24 wd=12,6 o={0} h={12} e={9223372036854775807} d={-1}",
            "p = MatMul(x, w) l = Slice(p, o, h, d) r = Slice(p, h, e, d) sg = Sigmoid(r) m = Mul(l, sg) y = MatMul(m, wd)", "12"),
    Network("flatten", "x:N,3,5,5 w=6,3,3,3 wy=4,54 by=4", "a = Conv(x, w) r = Relu(a) f = Flatten(r) y = Gemm<transB=1>(f, wy, by)", "6"),
    Network("flatten_reshape", "x:N,3,5,5 w=6,3,3,3 wy=54,4 to={-1,54}", "a = Conv(x, w) r = Relu(a) f = Reshape(r, to) y = MatMul(f, wy)", "6"),
    Network("flatten_shared_constant", "x:N,3,5,5 w=6,3,3,3 v=6,3,3,3 wy=54,4 vy=54,4 size={54} zero=#0 axis={0}",
            "a = Conv(x, w) b = Conv(x, v) sa = Shape(a) na = Gather(sa, zero) ua = Unsqueeze(na, axis) ta = Concat<axis=0>(ua, size) sb = Shape(b) nb = Gather(sb, zero) "
            "ub = Unsqueeze(nb, axis) tb = Concat<axis=0>(ub, size) ra = Relu(a) rb = Tanh(b) fa = Reshape(ra, ta) fb = Reshape(rb, tb) ya = MatMul(fa, wy) yb = MatMul(fb, vy) y = Add(ya, yb)", "6 6"),
    Network("flatten_shared_vector", "x:N,3,5,5 w=6,3,3,3 v=6,3,3,3 wy=54,4 vy=54,4 to={-1,54}",
            "a = Conv(x, w) b = Conv(x, v) ra = Relu(a) rb = Tanh(b) fa = Reshape(ra, to) fb = Reshape(rb, to) ya = MatMul(fa, wy) yb = MatMul(fb, vy) y = Add(ya, yb)", "6 6"),
    Network("flatten_multiplied", "x:N,3,H,5 w=6,3,1,1 zero=#0 one=#1 two=#2 axis={0} five=#5 wy=30,4",
            "a = Conv(x, w) s = Shape(a) c = Gather(s, one) n = Gather(s, zero) h = Gather(s, two) k = Mul(c, five) nu = Unsqueeze(n, axis) hu = Unsqueeze(h, axis) ku = Unsqueeze(k, axis) "
            "t = Transpose<perm=[0,2,1,3]>(a) to = Concat<axis=0>(nu, hu, ku) f = Reshape(t, to) y = MatMul(f, wy)", "6"),
    Network("heads_divided", "x:N,T,6 wq=6,12 wo=12,6 zero=#0 one=#1 two=#2 axis={0} h=#3 hv={3} m={-1}",
            "q = MatMul(x, wq) s = Shape(q) n = Gather(s, zero) t = Gather(s, one) c = Gather(s, two) d = Div(c, h) nu = Unsqueeze(n, axis) tu = Unsqueeze(t, axis) du = Unsqueeze(d, axis) "
            "to = Concat<axis=0>(nu, tu, hv, du) r = Reshape(q, to) p = Transpose<perm=[0,2,1,3]>(r) g = Softmax(p) b = Transpose<perm=[0,2,1,3]>(g) "
            "back = Concat<axis=0>(nu, tu, m) z = Reshape(b, back) y = MatMul(z, wo)", "3"),
    Network("lrn_9", "x:N,3,6,6 w=8,3,1,1 wy=5,8 by=5", "a = Conv(x, w) l = LRN<size=3, alpha=0.5>(a) r = Relu(l) " + HEAD.format("r"), "8", 9),
    Network("lrn_13", "x:N,3,6,6 w=8,3,1,1 w2=6,8,1,1 wy=5,6 by=5", "a = Conv(x, w) l = LRN<size=5, alpha=0.5>(a) b = Conv(l, w2) m = LRN<size=3>(b) " + HEAD.format("m"), "6 8", 13),
    Network("gather_positions", "x:N,3,6,6 w=8,3,1,1 i={0,2,4,6} j={1,3,5,7} w2=6,4,1,1 w3=6,4,1,1 wy=5,6 by=5",
            "a = Conv(x, w) l = Gather<axis=1>(a, i) r = Gather<axis=1>(a, j) b = Conv(l, w2) c = Conv(r, w3) d = Mul(b, c) " + HEAD.format("d"), "4 4 6"),
    Network("pixel_shuffle", "x:N,3,6,6 w=24,3,1,1 w2=4,6,3,3 wy=5,4 by=5", 'a = Conv(x, w) d = DepthToSpace<blocksize=2, mode="CRD">(a) c = Conv(d, w2) ' + HEAD.format("c"), "4 6"),
    Network("pixel_shuffle_written_out", "x:N,3,6,6 w=24,3,1,1 w2=4,6,3,3 wy=5,4 by=5 to={0,6,2,2,6,6} back={0,6,12,12}",
            "a = Conv(x, w) r = Reshape(a, to) t = Transpose<perm=[0,1,4,2,5,3]>(r) d = Reshape(t, back) c = Conv(d, w2) " + HEAD.format("c"), "4 6"),
    Network("group_norm_written_out", "x:N,3,6,6 w=8,3,1,1 to={0,4,-1} s=4 t=4 s2=8,1,1 t2=8,1,1 w2=6,8,1,1 wy=5,6 by=5",
            "a = Conv(x, w) r = Reshape(a, to) n = InstanceNormalization(r, s, t) sh = Shape(a) b = Reshape(n, sh) m = Mul(b, s2) d = Add(m, t2) c = Conv(d, w2) " + HEAD.format("c"), "4 6"),
    Network("unet", "x:N,3,8,8 w=4,3,3,3 w2=6,4,3,3 w3=6,5,2,2 b3=5 w4=7,9,3,3 wy=5,7 by=5 scales=f{1,1,2,2} w5=6,6,1,1",
            "a = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2) u0 = Conv(d, w5) u = ConvTranspose<strides=[2,2]>(u0, w3, b3) c = Concat<axis=1>(a, u) e = Conv(c, w4) " + HEAD.format("e"), "4 5 6 6 7"),
    Network("resized", "x:N,3,8,8 w=4,3,3,3 w2=6,4,3,3 w4=7,4,1,1 wy=5,7 by=5 scales=f{1,1,2,2} w5=4,6,1,1",
            "a = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2) u0 = Conv(d, w5) u = Resize(u0, , scales) c = Add(a, u) e = Conv(c, w4) " + HEAD.format("e"), "4 6 7"),
    Network("resized_to_size", "x:N,3,8,8 w=4,3,3,3 w2=6,4,3,3 w7=5,6 by=5 start={0} end={2} axis={0} hw={8,8}",
            "a = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2) s = Shape(d) n = Slice(s, start, end, axis) z = Concat<axis=0>(n, hw) u = Resize(d, , , z) " + HEAD.format("u").replace("wy", "w7"), "4 6"),
    Network("channels_last", "x:N,6,6,3 w=8,3,3,3 w2=6,8,1,1 b=8 wy=6,5",
            "t = Transpose<perm=[0,3,1,2]>(x) a = Conv(t, w) l = Transpose<perm=[0,2,3,1]>(a) d = Add(l, b) r = Relu(d) k = Transpose<perm=[0,3,1,2]>(r) c = Conv(k, w2) "
            "e = Transpose<perm=[0,2,3,1]>(c) m = ReduceMean<axes=[1,2], keepdims=0>(e) y = MatMul(m, wy)", "6 8"),
    Network("weight_behind_nodes", "x:N,5 w=8,5 v=1,8,6 i={0} u=6,4", "wt = Transpose<perm=[1,0]>(w) wi = Identity(wt) a = MatMul(x, wi) vs = Squeeze(v, i) b = MatMul(a, vs) k = Cast<to=1>(u) y = MatMul(b, k)", "6 8"),
    Network("weights_in_constants", "x:N,5 w=5,3", "a = MatMul(x, w) b = Constant<value_floats=[0.5,1.5,-2.5]>() c = Add(a, b) v = Constant<value=float[3,2] {1,2,3,4,5,6}>() y = MatMul(c, v)", "3"),
    Network("weight_used_twice", "x:N,5 w=5,8 v=8,8 u=8,4", "a = MatMul(x, w) r = Relu(a) b = MatMul(r, v) s = Relu(b) c = MatMul(s, v) y = MatMul(c, u)", "8"),
    Network("tied_embedding", "x:N,7 e=7,8 w=8,12 v=12,8", "a = MatMul(x, e) h = MatMul(a, w) r = Relu(h) b = MatMul(r, v) t = Transpose<perm=[1,0]>(e) y = MatMul(b, t)", "8 12"),
    Network("quantized_weights", "x:N,3,6,6 q=n8,3,3,3 s=+8 z=n8 b=h8 q2=n6,8,1,1 s2=f#0.1 wy=5,6 by=5",
            "w = DequantizeLinear<axis=0>(q, s, z) bf = DequantizeLinear<axis=0>(b, s) a = Conv(x, w, bf) r = Relu(a) w2 = DequantizeLinear(q2, s2) c = Conv(r, w2) " + HEAD.format("c"), "6 8"),
    Network("multiplier", "x:N,3,6,6 w=4,3,1,1 w2=8,1,3,3 b2=8 w3=6,8,1,1 wy=5,6 by=5", "a = Conv(x, w) d = Conv<group=4>(a, w2, b2) c = Conv(d, w3) " + HEAD.format("c"), "4 6"),
    Network("sum_over_channels", "x:N,5,6 w=6,8 b=8 d={2}", "a = MatMul(x, w) c = Add(a, b) y = ReduceSum(c, d)", "8"),
    Network("scale_from_shape", QKV.replace(" scale=1", "") + " three=#3 heads={0,5,3,4} merged={0,5,12}",
            ATTENTION.replace("s = MatMul", "hs = Shape(qt) hd = Gather(hs, three) hf = Cast<to=1>(hd) hr = Sqrt(hf) scale = Reciprocal(hr) s = MatMul"), "3"),
    Network("attention_flattened", QKV.replace("wo=12,6", "wo=12,6 rows={-1,6} b=12 bo=6 again={-1,5,6}") + " heads={-1,5,3,4} merged={-1,12}",
            ATTENTION.replace("q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)", "z = Reshape(x, rows) q = Gemm(z, wq, b) k = Gemm(z, wk) v = MatMul(z, wv)")
            .replace("y = MatMul(om, wo)", "g = Gemm(om, wo, bo) y = Reshape(g, again)"), "3"),
    Network("attention_masked", QKV + " heads={0,5,3,4} merged={0,5,12} mask=b5,5 low=()", ATTENTION.replace("a = Softmax(sd)", "sm = Where(mask, sd, low) a = Softmax(sm)"), "3"),
    Network("rotary", "x:N,5,6 wq=6,12 wk=6,12 wv=6,12 wo=12,6 heads={0,5,3,4} merged={0,5,12} cos=5,4 sin=5,4 o={0} h={2} e={9223372036854775807} d={-1}",
            "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, heads) k4 = Reshape(k, heads) v4 = Reshape(v, heads) "
            "q5 = Transpose<perm=[0,2,1,3]>(q4) k5 = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4) "
            "ql = Slice(q5, o, h, d) qr = Slice(q5, h, e, d) qn = Neg(qr) qc = Concat<axis=-1>(qn, ql) qa = Mul(q5, cos) qb = Mul(qc, sin) qt = Add(qa, qb) "
            "kl = Slice(k5, o, h, d) kr = Slice(k5, h, e, d) kn = Neg(kr) kc = Concat<axis=-1>(kn, kl) ka = Mul(k5, cos) kb = Mul(kc, sin) k6 = Add(ka, kb) "
            "kt = Transpose<perm=[0,1,3,2]>(k6) s = MatMul(qt, kt) a = Softmax(s) c = MatMul(a, vt) ot = Transpose<perm=[0,2,1,3]>(c) om = Reshape(ot, merged) y = MatMul(om, wo)", "3"),
    Network("mixer", "x:N,5,6 w1=5,8 w2=8,5 w3=6,12 w4=12,6",
            "t = Transpose<perm=[0,2,1]>(x) a = MatMul(t, w1) r = Relu(a) b = MatMul(r, w2) u = Transpose<perm=[0,2,1]>(b) c = Add(x, u) d = MatMul(c, w3) e = Relu(d) f = MatMul(e, w4) y = Add(c, f)", "8 12"),
    Network("upsample_like", "x:N,3,8,8 w=6,3,3,3 w2=6,6,3,3 wy=5,6 by=5",
            "a = Conv<pads=[1,1,1,1]>(x, w) d = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w2) s = Shape(a) u = Resize(d, , , s) e = Mul(a, u) " + HEAD.format("e"), "6"),
    Network("expand_as", "x:N,3,6,6 w=6,3,3,3 t=1,1,4,4 wy=5,6 by=5", "a = Conv(x, w) s = Shape(a) e = Expand(t, s) m = Mul(a, e) " + HEAD.format("m"), "6"),
    Network("expand_as_another", "x:N,3,6,6 w=6,3,3,3 t=1,1,4,4 wy=5,6 by=5 v=5,6,1,1",
            "a = Conv(x, w) s = Shape(a) e = Expand(t, s) m = Conv(e, v) p = GlobalAveragePool(a) f = Flatten(p) g = Gemm<transB=1>(f, wy, by) h = GlobalAveragePool(m) k = Flatten(h) y = Add(g, k)", "6 6"),
    Network("chunk_computed", "x:N,3,6,6 w=8,3,1,1 w2=5,4,1,1 wy=5,5 by=5 one=#1 two=#2 zero={0} axis={1} flat={0}",
            "a = Conv(x, w) s = Shape(a) c = Gather(s, one) h0 = Div(c, two) h = Unsqueeze(h0, flat) e = Unsqueeze(c, flat) l = Slice(a, zero, h, axis) r = Slice(a, h, e, axis) "
            "g = Sigmoid(r) m = Mul(l, g) k = Conv(m, w2) " + HEAD.format("k"), "4 5"),
    Network("flatten_shared_computed", "x:N,3,5,5 w=6,3,3,3 v=6,3,3,3 wy=54,4 vy=54,4 size={54} zero=#0 axis={0}",
            "a = Conv(x, w) b = Conv(x, v) sa = Shape(a) na = Gather(sa, zero) ua = Unsqueeze(na, axis) ta = Concat<axis=0>(ua, size) ra = Relu(a) rb = Tanh(b) "
            "fa = Reshape(ra, ta) fb = Reshape(rb, ta) ya = MatMul(fa, wy) yb = MatMul(fb, vy) y = Add(ya, yb)", "6 6"),
    Network("weight_normalized", "x:N,3,6,6 v=8,3,1,1 g=8,1,1,1 v2=6,8,3,3 g2=6,1,1,1 wy=5,6 by=5",
            "n = ReduceL2<axes=[1,2,3]>(v) d = Div(v, n) w = Mul(d, g) a = Conv(x, w) r = Relu(a) n2 = ReduceL2<axes=[1,2,3]>(v2) d2 = Div(v2, n2) w2 = Mul(d2, g2) c = Conv(r, w2) " + HEAD.format("c"), "6 8"),
    Network("normalized_features", "x:N,6 w=6,8 v=8,4 low=f#0.001", "a = MatMul(x, w) n = ReduceL2<axes=[1]>(a) c = Clip(n, low) s = Shape(a) e = Expand(c, s) d = Div(a, e) y = MatMul(d, v)", "8"),
    Network("layer_scale", "x:N,3,8,8 w=8,3,2,2 dw=8,1,3,3 w1=8,12 b1=12 w2=12,8 gamma=8 wy=5,8 by=5",
            "a = Conv<strides=[2,2]>(x, w) b = Conv<group=8, pads=[1,1,1,1]>(a, dw) t = Transpose<perm=[0,2,3,1]>(b) c = MatMul(t, w1) d = Add(c, b1) e = Relu(d) f0 = MatMul(e, w2) "
            "h = Mul(f0, gamma) u = Transpose<perm=[0,3,1,2]>(h) z = Add(a, u) " + HEAD.format("z"), "8 12"),
    Network("squeezed_everywhere", "x:2,3,6,6 w=8,3,1,1 w2=8,4", "a = Conv(x, w) p = GlobalMaxPool(a) s = Squeeze(p) y = MatMul(s, w2)", "8"),
    Network("grouped_transpose", "x:N,3,4,4 w=8,3,1,1 w2=8,3,2,2 w3=5,6,1,1 wy=5,5 by=5", "a = Conv(x, w) b = ConvTranspose<group=2, strides=[2,2]>(a, w2) c = Conv(b, w3) " + HEAD.format("c"), "5 6 8"),
    Network("concatenated_weights", "x:N,5 w1=5,3 w2=5,4 v=7,6", "w = Concat<axis=1>(w1, w2) a = MatMul(x, w) y = MatMul(a, v)", "3 4"),
    Network("cosine_scores", "x:N,6 w=6,8 p=10,8", "a = MatMul(x, w) t = Transpose(p) y = MatMul(a, t)", "8"),
    Network("slice_negative", "x:N,3,6,6 w=8,3,1,1 o={-8} h={-3} e={2147483647} d={1} w2=6,5,1,1 w3=6,3,1,1 wy=5,6 by=5",
            "a = Conv(x, w) l = Slice(a, o, h, d) r = Slice(a, h, e, d) b = Conv(l, w2) c = Conv(r, w3) k = Mul(b, c) " + HEAD.format("k"), "3 5 6"),
    Network("token_shift", "x:N,4,4,6 w=6,8 v=8,6 o={1} e={9223372036854775807} z={0} d={1}",
            "a = MatMul(x, w) l = Slice(a, o, e, d) r = Slice(a, z, o, d) s = Concat<axis=1>(l, r) y = MatMul(s, v)", "8"),
    Network("scaled_by_length", "x:N,3,6,6 w=8,3,1,1 one=#1 wy=5,8 by=5", "a = Conv(x, w) s = Shape(a) c = Gather(s, one) n = Cast<to=1>(c) d = Div(a, n) " + HEAD.format("d"), "8"),
    Network("lstm_tagger", "x:i2,T e=9,6 w=2,16,6 r=2,16,4 b=2,32 w2=1,12,8 r2=1,12,3 b2=1,24 to={0,0,-1} d={1} wy=3,5",
            'g = Gather(e, x) t = Transpose<perm=[1,0,2]>(g) a = LSTM<hidden_size=4, direction="bidirectional">(t, w, r, b) u = Transpose<perm=[0,2,1,3]>(a) '
            "m = Reshape(u, to) c, h, z = LSTM<hidden_size=3>(m, w2, r2, b2) s = Squeeze(c, d) k = MatMul(s, wy) y = Transpose<perm=[1,0,2]>(k) "
            "hz = Add(h, z) o = MatMul(hz, wy)", "3 4 6"),
    Network("gru_state_of_zeros", "x:T,N,6 w=1,12,6 r=1,12,4 b=1,24 one=#1 axis={0} directions={1} units={4} d={1} w2=4,5",
            "s = Shape(x) n = Gather(s, one) un = Unsqueeze(n, axis) z = Concat<axis=0>(directions, un, units) h0 = ConstantOfShape(z) "
            "a, h = GRU<hidden_size=4, linear_before_reset=1>(x, w, r, b, , h0) q = Squeeze(a, d) k = Relu(q) y = MatMul(k, w2) hq = Squeeze(h, axis) o = MatMul(hq, w2)", "4"),
    Network("rnn_layers_7", "x:T,N,6 w=1,5,6 r=1,5,5 w2=1,4,5 r2=1,4,4 wy=4,3",
            "a = RNN<hidden_size=5>(x, w, r) s = Squeeze<axes=[1]>(a) , h = RNN<hidden_size=4>(s, w2, r2) q = Squeeze<axes=[0]>(h) y = MatMul(q, wy)", "4 5", 7),
    Network("lstm_given_state", "x:2,3,T h:1,2,4 c:1,2,4 w0=6,3,1 w=1,16,6 r=1,16,4",
            "a = Conv(x, w0) k = Relu(a) t = Transpose<perm=[2,0,1]>(k) y, ho, co = LSTM<hidden_size=4>(t, w, r, , , h, c)", "6"),
    Network("attention_operator", "x:2,5,6 wq=6,16 wk=6,8 wv=6,8 wo=16,6 cos=2,5,2 sin=2,5,2 g=16",
            "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) qb = Add(q, g) qr = RotaryEmbedding<num_heads=4>(qb, cos, sin) kr = RotaryEmbedding<num_heads=2>(k, cos, sin) "
            "a = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(qr, kr, v) y = MatMul(a, wo)", "2", 23),
    Network("attention_operator_heads_apart", "x:N,T,6 wq=6,16 wk=6,8 wv=6,8 wo=16,6 hq={0,0,4,4} hk={0,0,2,4} back={0,0,-1} g=4",
            "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, hq) k4 = Reshape(k, hk) v4 = Reshape(v, hk) qn = RMSNormalization(q4, g) kn = RMSNormalization(k4, g) "
            "qt = Transpose<perm=[0,2,1,3]>(qn) kt = Transpose<perm=[0,2,1,3]>(kn) vt = Transpose<perm=[0,2,1,3]>(v4) a = Attention<scale=0.5>(qt, kt, vt) "
            "ot = Transpose<perm=[0,2,1,3]>(a) om = Reshape(ot, back) y = MatMul(om, wo)", "2", 23),
    Network("attention_operator_default_scale", "x:N,T,6 wq=6,12 wk=6,12 wv=6,12 wo=12,6 heads={0,0,3,4} back={0,0,-1}",
            "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, heads) k4 = Reshape(k, heads) v4 = Reshape(v, heads) "
            "qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,1,3]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4) a = Attention(qt, kt, vt) "
            "ot = Transpose<perm=[0,2,1,3]>(a) om = Reshape(ot, back) y = MatMul(om, wo)", "3", 23),
    Network("fused_convolutions", "x:2,3,6,6 w=8,3,3,3 b=8 w2=8,8,3,3 b2=8 wy=5,8 by=5",
            'a = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(x, w, b) c = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(a, w2, b2, a) '
            'p = GlobalAveragePool(c) f = Flatten(p) y = com.microsoft.FusedGemm<transB=1, activation="Relu">(f, wy, by)', "8"),
    Network("fused_transformer", "x:2,5,6 s=6 t=6 w1=6,12 b1=12 w2=6,12 b3=6",
            "h = MatMul(x, w1) g = com.microsoft.BiasGelu(h, b1) u = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(g, w2) "
            "y = com.microsoft.SkipLayerNormalization(x, u, s, t, b3)", "12"),
    Network("sampled", "x:N,3,6,6 w=8,3,1,1 w2=2,3,3,3 w3=6,8,1,1 wy=5,6 by=5",
            "a = Conv(x, w) o = Conv(x, w2) g = Transpose<perm=[0,2,3,1]>(o) b = GridSample(a, g) c = Conv(b, w3) " + HEAD.format("c"), "6 8", 20),
    Network("deformed", "x:N,3,6,6 w=8,3,3,3 wo=18,8,1,1 w2=6,8,3,3 b2=6 wy=5,6 by=5",
            "a = Conv(x, w) o = Conv(a, wo) c = DeformConv<pads=[1,1,1,1]>(a, w2, o, b2) " + HEAD.format("c"), "6 8", 19),
    Network("picked_rows", "x:N,7,6 w=6,8 u=8,4 i={0,2,6} s={3,1}",
            "a = MatMul(x, w) r = Transpose<perm=[1,0,2]>(a) k = Reshape(i, s) g = GatherND(r, k) y = MatMul(g, u)", "8"),
    Network("scale_from_width", WIDTH, WIDTH_SCALE, "3"),
    Network("scale_from_width_11", WIDTH, WIDTH_SCALE.replace("Softmax", "Softmax<axis=3>"), "3", 11),
    Network("length_of_heads_in_the_batch", QKV + " heads={0,5,3,4} merged={0,5,12} zero=#0 rows={-1,5,4} again={-1,3,5,4}",
            ATTENTION.replace("s = MatMul(qt, kt)", "qr = Reshape(qt, rows) n = Shape(qr) m = Gather(n, zero) mf = Cast<to=1>(m) ml = Sqrt(mf) qd = Div(qr, ml) "
            "qu = Reshape(qd, again) s = MatMul(qu, kt)"), "3"),
    Network("batch_by_multiplication", QKV + " heads={0,5,3,4} merged={0,5,12} zero=#0 axis={0} third=f#0.33333334 rest={3,5,4} rows={-1,5,4}",
            ATTENTION.replace("s = MatMul(qt, kt)", "qr = Reshape(qt, rows) n = Shape(qr) m = Gather(n, zero) mf = Cast<to=1>(m) mt = Mul(mf, third) mi = Cast<to=7>(mt) "
            "mu = Unsqueeze(mi, axis) again = Concat<axis=0>(mu, rest) qu = Reshape(qr, again) s = MatMul(qu, kt)"), "3"),
    Network("mean_over_size", "x:N,5,6 w=6,8 b=8 d={2}", MEAN, "8"),
    Network("mean_over_size_11", "x:N,5,6 w=6,8 b=8", MEAN.replace("ReduceSum(c, d)", "ReduceSum<axes=[2]>(c)"), "8", 11),
    Network("length_in_shape_and_data", "x:N,5,6 w=6,8 v=8,4 one=#1 two=#2 zero=#0 axis={0}",
            "a = MatMul(x, w) s = Shape(a) n = Gather(s, zero) t = Gather(s, one) c = Gather(s, two) nu = Unsqueeze(n, axis) tu = Unsqueeze(t, axis) cu = Unsqueeze(c, axis) "
            "k = Mul(nu, tu) to = Concat<axis=0>(k, cu) r = Reshape(a, to) f = Cast<to=1>(c) h = Sqrt(f) d = Div(r, h) y = MatMul(d, v)", "8"),
    Network("length_in_range", "x:N,5,6 w=6,8 v=8,4 zero=#0 one=#1 two=#2",
            COUNTED + "g = Range(zero, c, one) gf = Cast<to=1>(g) p = ReduceMean(gf) d = Mul(a, p) y = MatMul(d, v)", "8"),
    Network("length_compared", "x:N,T,6 w=6,8 v=8,4 one=#1 two=#2 low=f#0.5 high=f#2",
            COUNTED + "t = Gather(s, one) k = Greater(c, t) p = Where(k, high, low) d = Mul(a, p) y = MatMul(d, v)", "8"),
    Network("length_recognized", "x:N,T,6 w=6,8 v=8,4 one=#1 two=#2 eight=#8 some=#3 start={0} axis={1}",
            COUNTED + "t = Gather(s, one) l = Sub(t, one) k = Equal(c, eight) b = Where(k, l, some) e = Unsqueeze(b, start) "
            "d = Slice(a, start, e, axis) y = MatMul(d, v)", "8"),
    Network("length_looked_up", "x:N,5,6 w=6,8 v=8,4 two=#2 table=9", COUNTED + "p = Gather(table, c) d = Mul(a, p) y = MatMul(d, v)", "8"),
    Network("bases_between_shifted", "x:N,5 w=5,8 k=8,4 u=8,3 v=24,3 two={2} zero={0} one={1} three={3} four={4} flat={0,24}",
            "h = MatMul(x, w) e = Unsqueeze(h, two) d = Mul(e, k) l = Slice(d, zero, three, two) r = Slice(d, one, four, two) s = Mul(l, r) "
            "m = Reshape(s, flat) a = MatMul(m, v) b = MatMul(h, u) y = Add(a, b)", "8"),
    Network("parts_taken_apart", "x:N,5 w=5,8 wf=5,24 cut={0,3,8} one={1} v=8,4",
            "h = MatMul(x, w) f = MatMul(x, wf) r = Reshape(f, cut) a, b, c = Split<axis=1>(r) as = Squeeze(a, one) bs = Squeeze(b, one) cs = Squeeze(c, one) "
            "k = Mul(h, as) l = Mul(k, bs) m = Add(l, cs) y = MatMul(m, v)", "8"),
    Network("sum_of_parts", "x:N,3,6,6 w=24,3,3,3 cut={0,4,6,4,4} one={1} wy=5,6 by=5",
            "a = Conv(x, w) r = Reshape(a, cut) e = ReduceSum<keepdims=0>(r, one) " + HEAD.format("e"), "6"),
    Network("largest_of_parts", "x:N,3,6,6 w=24,3,3,3 cut={0,4,6,4,4} wy=5,6 by=5",
            "a = Conv(x, w) r = Reshape(a, cut) e = ReduceMax<axes=[1], keepdims=0>(r) " + HEAD.format("e"), "6"),
    Network("places_by_maximum", "x:N,3,6,6 w=8,3,3,3 kp=1,1,3,3 wy=5,8 by=5",
            "a = Conv(x, w) e = ReduceMax<axes=[1]>(a) "
            "q = Conv<pads=[1,1,1,1]>(e, kp) g = Sigmoid(q) z = Mul(a, g) " + HEAD.format("z"), "8"),
    Network("length_halved", "x:N,5,6 w=6,8 v=8,4 two=#2 half=f#0.5", COUNTED + "f = Cast<to=1>(c) h = Mul(f, half) i = Cast<to=7>(h) "
            "p = Cast<to=1>(i) d = Mul(a, p) y = MatMul(d, v)", "8"),
    Network("length_in_triangle", "x:N,5,6 w=6,8 v=8,4 two=#2 eight=#8 z=5,5",
            COUNTED + "k = Sub(c, eight) p = Trilu(z, k) d = MatMul(p, a) y = MatMul(d, v)", "8"),
    Network("length_expanded", "x:N,5,6 w=6,8 u=1,1,8 v=8,4 minus=#-1 rank={3}",
            "a = MatMul(x, w) s = Shape(a) o = ConstantOfShape<value=int64[1] {1}>(rank) n = Mul(o, minus) q = Equal(s, n) p = Where(q, o, s) "
            "e = Expand(u, p) d = Add(a, e) y = MatMul(d, v)", "8"),
)  # fmt: skip
