"""Every operator that has a channel rule, in every variant: tensors, ONNX text, and what must be prunable.

See ``onnx_text`` for the tensors and ``law.Case`` for the other fields. All axes of a case have different sizes where
that is possible, so that a rule cannot confuse them.
"""

from law import Case

# ruff: noqa: E501, SIM905

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish Identity IsInf IsNaN "
    "LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh "
    "ThresholdedRelu Gelu"
).split()
BINARY = "Add Sub Mul Div Pow Max Min Mean Sum PRelu Equal Greater GreaterOrEqual Less LessOrEqual".split()
BITS = "BitwiseAnd BitwiseOr BitwiseXor Mod".split()
LOGIC = "And Or Xor".split()
SPATIAL_POOLS = {"AveragePool": "<kernel_shape=[2,2]>", "MaxPool": "<kernel_shape=[2,2], strides=[2,2]>",
                 "LpPool": "<kernel_shape=[2,2]>", "GlobalAveragePool": "", "GlobalMaxPool": "", "GlobalLpPool": ""}  # fmt: skip
SUMS = "ReduceSum ReduceL1 ReduceL2 ReduceSumSquare".split()
OTHER_REDUCTIONS = "ReduceMax ReduceMin ReduceProd ReduceLogSum ReduceLogSumExp".split()

CONVOLUTION = (
    Case("conv", "x:2,6,5,5 w=8,6,3,3 b=8", "y = Conv(x, w, b)", "x0:2 x1:6 w0:8"),
    Case("conv_strided", "x:2,6,7,7 w=8,6,3,3", "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)", "x0:2 x1:6 w0:8"),
    Case("conv_one_input_channel", "x:2,1,5,5 w=8,1,3,3", "y = Conv(x, w)", "x0:2 w0:8"),
    Case("conv_1d", "x:2,4,9 w=6,4,3", "y = Conv(x, w)", "x0:2 x1:4 w0:6"),
    Case("conv_3d", "x:2,4,3,3,3 w=6,4,2,2,2", "y = Conv(x, w)", "x0:2 x1:4 w0:6"),
    Case("conv_group2", "x:2,8,5,5 w=12,4,3,3 b=12", "y = Conv<group=2>(x, w, b)", "x0:2 x1:4 w0:6"),
    Case("conv_group_of_two", "x:2,8,4,4 w=8,2,3,3", "y = Conv<group=4>(x, w)", "x0:2 x1:2 w0:2"),
    Case("conv_group_one_output", "x:2,8,4,4 w=4,2,3,3", "y = Conv<group=4>(x, w)", "x0:2 x1:2"),
    Case("conv_depthwise", "x:2,6,5,5 w=6,1,3,3 b=6", "y = Conv<group=6>(x, w, b)", "x0:2 x1:6"),
    Case("conv_multiplier", "x:2,6,5,5 w=18,1,3,3 b=18", "y = Conv<group=6>(x, w, b)", "x0:2 x1:6"),
    Case("conv_dynamic_weight", "x:2,6,5,5 w:8,6,3,3", "y = Conv(x, w)", "x0:2 x1:6 w0:8"),
    Case("conv_transpose", "x:2,6,4,4 w=6,8,3,3 b=8", "y = ConvTranspose(x, w, b)", "x0:2 x1:6 w1:8"),
    Case("conv_transpose_square", "x:2,6,4,4 w=6,6,3,3", "y = ConvTranspose(x, w)", "x0:2 x1:6 w1:6"),
    Case("conv_transpose_1d", "x:2,6,4 w=6,8,3", "y = ConvTranspose<strides=[2]>(x, w)", "x0:2 x1:6 w1:8", run="runtime"),
    Case("conv_transpose_group2", "x:2,8,4,4 w=8,6,3,3 b=12", "y = ConvTranspose<group=2>(x, w, b)", "x0:2 x1:4 w1:6",
         run="runtime"),
    Case("conv_transpose_depthwise", "x:2,6,4,4 w=6,1,3,3", "y = ConvTranspose<group=6>(x, w)", "x0:2 x1:6",
         run="runtime"),
    Case("conv_transpose_multiplier", "x:2,6,4,4 w=6,2,3,3 b=12", "y = ConvTranspose<group=6>(x, w, b)", "x0:2 x1:6",
         run="runtime"),
)  # fmt: skip

LINEAR = (
    Case("gemm", "x:5,6 w=6,8 b=8", "y = Gemm(x, w, b)", "x0:5 x1:6 w1:8"),
    Case("gemm_plain", "x:5,6 w=6,8", "y = Gemm<alpha=0.5>(x, w)", "x0:5 x1:6 w1:8"),
    Case("gemm_trans_a", "x:6,5 w=6,8 b=8", "y = Gemm<transA=1>(x, w, b)", "x1:5 x0:6 w1:8"),
    Case("gemm_trans_b", "x:5,6 w=8,6 b=8", "y = Gemm<transB=1, beta=0.5>(x, w, b)", "x0:5 x1:6 w0:8"),
    Case("gemm_square_trans_b", "x:5,6 w=6,6 b=6", "y = Gemm<transB=1>(x, w, b)", "x0:5 x1:6 w0:6"),
    Case("gemm_trans_both", "x:6,5 w=8,6", "y = Gemm<transA=1, transB=1>(x, w)", "x1:5 x0:6 w0:8"),
    Case("gemm_bias_row", "x:5,6 w=6,8 b=1,8", "y = Gemm(x, w, b)", "x0:5 x1:6 w1:8"),
    Case("gemm_bias_column", "x:5,6 w=6,8 b=5,1", "y = Gemm(x, w, b)", "x0:5 x1:6 w1:8"),
    Case("gemm_bias_one", "x:5,6 w=6,8 b=1", "y = Gemm(x, w, b)", "x0:5 x1:6 w1:8"),
    Case("gemm_bias_scalar", "x:5,6 w=6,8 b=()", "y = Gemm(x, w, b)", "x0:5 x1:6 w1:8"),
    Case("gemm_bias_matrix", "x:5,6 w=6,8 b=5,8", "y = Gemm(x, w, b)", "x0:5 x1:6 w1:8"),
    Case("gemm_dynamic", "x:5,6 w:6,8 b:8", "y = Gemm(x, w, b)", "x0:5 x1:6 w1:8"),
    Case("matmul", "x:5,6 w=6,8", "y = MatMul(x, w)", "x0:5 x1:6 w1:8"),
    Case("matmul_sequence", "x:2,5,6 w=6,8", "y = MatMul(x, w)", "x0:2 x1:5 x2:6 w1:8"),
    Case("matmul_weight_left", "x:2,6,5 w=8,6", "y = MatMul(w, x)", "x0:2 x1:6 x2:5 w0:8"),
    Case("matmul_batches", "a:2,3,5,6 b:2,3,6,7", "y = MatMul(a, b)", "a0:2 a1:3 a2:5 a3:6 b3:7"),
    Case("matmul_fewer_batches", "a:2,3,5,6 b:3,6,7", "y = MatMul(a, b)", "a0:2 a1:3 a2:5 a3:6 b2:7"),
    Case("matmul_stretched", "a:2,1,5,6 b:3,6,7", "y = MatMul(a, b)", "a0:2 b0:3 a2:5 a3:6 b2:7"),
    Case("matmul_vector_left", "a:6 w=6,7", "y = MatMul(a, w)", "a0:6 w1:7"),
    Case("matmul_vector_right", "a:5,6 w=6", "y = MatMul(a, w)", "a0:5 a1:6"),
    Case("matmul_vectors", "a:6 w=6", "y = MatMul(a, w)", "a0:6"),
    Case("matmul_vector_batches", "a:6 w=3,6,7", "y = MatMul(a, w)", "w0:3 a0:6 w2:7"),
    Case("matmul_batches_vector", "a:3,5,6 w=6", "y = MatMul(a, w)", "a0:3 a1:5 a2:6"),
    Case("matmul_with_itself", "a:5,5", "y = MatMul(a, a)", "a0:5"),
    Case("einsum_matrix", "x:5,6 w=6,8", 'y = Einsum<equation="ij,jk->ik">(x, w)', "x0:5 x1:6 w1:8"),
    Case("einsum_implicit", "x:5,6 w=6,8", 'y = Einsum<equation="ij, jk">(x, w)', "x0:5 x1:6 w1:8"),
    Case("einsum_scores", "q:2,3,4,6 k:2,3,5,6", 'y = Einsum<equation="bhqd,bhkd->bhqk">(q, k)',
         "q0:2 q1:3 q2:4 q3:6 k2:5"),
    Case("einsum_transpose", "x:5,6", 'y = Einsum<equation="ij->ji">(x)', "x0:5 x1:6"),
    Case("einsum_sum", "x:5,6", 'y = Einsum<equation="ij->i">(x)', "x0:5 x1:6"),
    Case("einsum_outer", "x:5 w=6", 'y = Einsum<equation="i,j->ji">(x, w)', "x0:5 w0:6"),
    Case("einsum_three", "x:5,6 w=6,7 v=7,4", 'y = Einsum<equation="ab,bc,cd->ad">(x, w, v)', "x0:5 x1:6 w1:7 v1:4"),
    Case("einsum_diagonal", "x:5,5", 'y = Einsum<equation="ii->i">(x)', ""),
    Case("einsum_ellipsis", "x:2,5,6 w=6,8", 'y = Einsum<equation="...j,jk->...k">(x, w)', ""),
)  # fmt: skip

NORMALIZATION = (
    Case("batch_norm", "x:2,6,4,3 s=6 b=6 m=6 v=+6", "y = BatchNormalization(x, s, b, m, v)", "x0:2 x1:6 x2:4 x3:3"),
    Case("batch_norm_flat", "x:2,6 s=6 b=6 m=6 v=+6", "y = BatchNormalization(x, s, b, m, v)", "x0:2 x1:6"),
    Case("instance_norm", "x:2,6,4,3 s=6 b=6", "y = InstanceNormalization(x, s, b)", "x0:2 x1:6"),
    Case("group_norm_18", "x:2,8,5 s=4 b=4", "y = GroupNormalization<num_groups=4>(x, s, b)", "x0:2 x1:4", 18, "float"),
    Case("group_norm_21", "x:2,8,5 s=8 b=8", "y = GroupNormalization<num_groups=4>(x, s, b)", "x0:2 x1:4", 21, "float"),
    Case("group_norm_each", "x:2,6,5 s=6 b=6", "y = GroupNormalization<num_groups=6>(x, s, b)", "x0:2 x1:6", 21, "float"),
    Case("layer_norm", "x:2,3,6 s=6 b=6", "y = LayerNormalization(x, s, b)", "x0:2 x1:3 ~x2:6", run="float"),
    Case("layer_norm_axis", "x:2,3,6 s=3,6", "y = LayerNormalization<axis=1>(x, s)", "x0:2 ~x1:3 ~x2:6", run="float"),
    Case("layer_norm_statistics", "x:2,3,6 s=6", "y, m, i = LayerNormalization(x, s)", "x0:2 x1:3 ~x2:6", run="float"),
    Case("rms_norm", "x:2,3,6 s=6", "y = RMSNormalization(x, s)", "x0:2 x1:3 ~x2:6", 23, "float"),
    Case("lrn", "x:2,6,4,3", "y = LRN<size=3, alpha=0.9>(x)", "x0:2 x1:6 x2:4 x3:3", run="runtime"),
    Case("lrn_old", "x:2,6,4,3", "y = LRN<size=3, alpha=0.9>(x)", "x0:2 x1:6 x2:4 x3:3", 9, "runtime"),
    Case("mean_variance", "x:2,6,4,3", "y = MeanVarianceNormalization(x)", "x1:6 ~x0:2 ~x2:4 ~x3:3", run="float"),
    Case("mean_variance_channels", "x:2,6,4,3", "y = MeanVarianceNormalization<axes=[1]>(x)", "x0:2 x2:4 x3:3 ~x1:6", run="float"),
    Case("lp_norm", "x:2,6,4", "y = LpNormalization<axis=1>(x)", "x0:2 x2:4"),
    Case("softmax", "x:2,6,4", "y = Softmax(x)", "x0:2 x1:6"),
    Case("softmax_axis", "x:2,6,4", "y = Softmax<axis=1>(x)", "x0:2 x2:4"),
    Case("softmax_11", "x:3,2,6,4", "y = Softmax<axis=2>(x)", "x0:3 x1:2", 11, "runtime"),
    Case("softmax_11_default", "x:3,2,6", "y = Softmax(x)", "x0:3", 11, "runtime"),
    Case("log_softmax", "x:2,6,4", "y = LogSoftmax(x)", "x0:2 x1:6"),
    Case("hardmax", "x:2,6,4", "y = Hardmax<axis=1>(x)", "x0:2 x2:4"),
)  # fmt: skip

ELEMENTWISE = (
    *(Case(op.lower(), "x:2,6,4", f"y = {op}(x)", "x0:2 x1:6 x2:4", 20, "float") for op in UNARY),
    *(Case(op.lower(), "x:2,6,4 w=6,1", f"y = {op}(x, w)", "x0:2 x1:6 x2:4", 20) for op in BINARY),
    *(Case(op.lower(), "x:i2,6,4 w=u6,1", f"v = Cast<to=7>(w) k = Max(v, one) y = {op}(x, k)".replace("one", "v"),
           "x0:2 x1:6 x2:4", 20) for op in BITS if op != "Mod"),
    Case("mod", "x:2,6,4 w=+6,1", "y = Mod<fmod=1>(x, w)", "x0:2 x1:6 x2:4"),
    *(Case(op.lower(), "x:b2,6,4 w=b6,1", f"y = {op}(x, w)", "x0:2 x1:6 x2:4") for op in LOGIC),
    Case("not", "x:b2,6,4", "y = Not(x)", "x0:2 x1:6 x2:4"),
    Case("bitwise_not", "x:u2,6,4", "y = BitwiseNot(x)", "x0:2 x1:6 x2:4", 18),
    Case("bit_shift", "x:u2,6,4 w=u6,1", 'y = BitShift<direction="LEFT">(x, w)', "x0:2 x1:6 x2:4"),
    Case("swish", "x:2,6,4", "y = Swish(x)", "x0:2 x1:6 x2:4", 24),
    Case("cast", "x:2,6,4", "y = Cast<to=1>(x)", "x0:2 x1:6 x2:4"),
    Case("cast_like", "x:2,6,4 t:u7", "y = CastLike(x, t)", "x0:2 x1:6 x2:4 t0:7", 19),
    Case("clip", "x:2,6,4 l=() h=()", "y = Clip(x, l, h)", "x0:2 x1:6 x2:4"),
    Case("clip_upper", "x:2,6,4 h=()", "y = Clip(x, , h)", "x0:2 x1:6 x2:4"),
    Case("clip_attributes", "x:2,6,4", "y = Clip<min=-0.5, max=0.5>(x)", "x0:2 x1:6 x2:4", 10),
    Case("dropout", "x:2,6,4", "y = Dropout(x)", "x0:2 x1:6 x2:4"),
    Case("dropout_mask", "x:2,6,4", "y, m = Dropout(x)", "x0:2 x1:6 x2:4"),
    Case("dropout_old", "x:2,6,4", "y = Dropout<ratio=0.5>(x)", "x0:2 x1:6 x2:4", 10),
    Case("add_channel_vector", "x:2,6,4,3 w=1,6,1,1", "y = Add(x, w)", "x0:2 x1:6 x2:4 x3:3"),
    Case("add_no_batch", "x:2,6,4,3 w=6,1,1", "y = Add(w, x)", "x0:2 x1:6 x2:4 x3:3"),
    Case("add_last", "x:2,6,4,3 w=3", "y = Add(x, w)", "x0:2 x1:6 x2:4 x3:3"),
    Case("mul_one", "x:2,6,4,3 w=1", "y = Mul(x, w)", "x0:2 x1:6 x2:4 x3:3"),
    Case("mul_scalar", "x:2,6,4,3 w=()", "y = Mul(x, w)", "x0:2 x1:6 x2:4 x3:3"),
    Case("sub_same", "a:2,6,4 b:2,6,4", "y = Sub(a, b)", "a0:2 a1:6 a2:4"),
    Case("add_opset_6", "x:2,6,4 w=6", "y = Add<broadcast=1, axis=1>(x, w)", "", 6),
    Case("add_outer", "a:6,1 b:1,5", "y = Add(a, b)", "a0:6 b1:5"),
    Case("max_of_three", "a:2,6,4 b:6,1 c:4", "y = Max(a, b, c)", "a0:2 a1:6 a2:4"),
    Case("sum_of_one", "x:2,6,4", "y = Sum(x)", "x0:2 x1:6 x2:4"),
    Case("where", "c:b6,1 a:2,6,4 b:4", "y = Where(c, a, b)", "a0:2 a1:6 a2:4"),
    Case("where_stored", "c=b6,4 a:2,6,4 b=()", "y = Where(c, a, b)", "a0:2 a1:6 a2:4"),
    Case("prelu_shared", "x:2,6,4 w=1", "y = PRelu(x, w)", "x0:2 x1:6 x2:4"),
    Case("prelu_channel", "x:2,6,4,3 w=6,1,1", "y = PRelu(x, w)", "x0:2 x1:6 x2:4 x3:3"),
)  # fmt: skip

POOLING = (
    *(Case(op.lower(), "x:2,6,4,4", f"y = {op}{attributes}(x)", "x0:2 x1:6", run="runtime") for op, attributes in SPATIAL_POOLS.items()),
    Case("max_pool_1d", "x:2,6,8", "y = MaxPool<kernel_shape=[3]>(x)", "x0:2 x1:6"),
    Case("max_pool_indices", "x:2,6,4,4", "y, i = MaxPool<kernel_shape=[2,2]>(x)", "", run="runtime"),
    Case("max_roi_pool", "x:1,6,8,8 r=f{0,1,1,6,6,0,2,2,7,5} s={2,5}",
         "k = Reshape(r, s) y = MaxRoiPool<pooled_shape=[2,2]>(x, k)", "x1:6", run="runtime"),
)  # fmt: skip

JOINING = (
    Case("concat", "a:2,3,4 b:2,5,4", "y = Concat<axis=1>(a, b)", "a0:2 a1:3 b1:5 a2:4"),
    Case("concat_negative", "a:2,3,4 b:2,3,5 w=2,3,7", "y = Concat<axis=-1>(a, b, w)", "a0:2 a1:3 a2:4 b2:5 w2:7"),
    Case("concat_first", "a:2,3 b:5,3", "y = Concat<axis=0>(a, b)", "a0:2 b0:5 a1:3"),
    Case("concat_twice", "a:2,6 w=12", "y = Concat<axis=1>(a, a) z = Mul(y, w)", "a0:2 a1:6"),
    Case("split", "x:2,7,3 s={2,5}", "y, z = Split<axis=1>(x, s)", "x0:2 x1:2 x1:5 x2:3"),
    Case("split_attribute", "x:2,7,3", "y, z = Split<axis=1, split=[3,4]>(x)", "x0:2 x1:3 x1:4 x2:3", 11),
    Case("split_equal", "x:2,6,4", "y, z = Split<axis=1>(x)", "x0:2 x1:3 x1:3 x2:4"),
    Case("split_equal_old", "x:2,6,4", "y, z, v = Split<axis=-2>(x)", "x0:2 x1:2 x1:2 x1:2 x2:4", 11),
    Case("split_num_outputs", "x:2,7,3", "y, z = Split<axis=1, num_outputs=2>(x)", "x0:2 x1:4 x1:3 x2:3", 18),
    Case("split_halves_meet", "x:2,6,4", "a, b = Split<axis=1>(x) y = Mul(a, b)", "x0:2 x1:3 x2:4"),
    Case("slice", "x:2,7,5 a={1} e={4} d={1}", "y = Slice(x, a, e, d)", "x0:2 x1:3 x1:4 x2:5"),
    Case("slice_attributes", "x:2,7,5", "y = Slice<starts=[1,0], ends=[4,3], axes=[1,2]>(x)", "x0:2 x1:3 x1:4 x2:3 x2:2", 9),
    Case("slice_all_axes", "x:6,5 a={1,2} e={4,5}", "y = Slice(x, a, e)", "x0:3 x0:3 x1:3 x1:2"),
    Case("slice_negative", "x:2,7,5 a={-4} e={-1} d={-2}", "y = Slice(x, a, e, d)", "x0:2 x1:3 x1:4 x2:5"),
    Case("slice_negative_attributes", "x:2,7,5", "y = Slice<starts=[-6], ends=[-2], axes=[1]>(x)", "x0:2 x1:4 x1:3 x2:5", 9),
    Case("slice_to_the_end", "x:2,7,5 a={3} e={9223372036854775807} d={1} t={1}", "y = Slice(x, a, e, d, t)",
         "x0:2 x1:4 x1:3 x2:5"),
    Case("slice_everything", "x:2,7,5 a={0} e={7} d={1}", "y = Slice(x, a, e, d)", "x0:2 x1:7 x2:5"),
    Case("slice_halves_meet", "x:2,6 o={0} h={3} e={6} d={1}", "a = Slice(x, o, h, d) b = Slice(x, h, e, d) y = Mul(a, b)",
         "x0:2 x1:3"),
    Case("slice_steps", "x:2,7,5 a={0} e={7} d={1} t={2}", "y = Slice(x, a, e, d, t)", "x0:2 x2:5"),
    Case("slice_backwards", "x:2,7,5 a={6} e={-100} d={1} t={-1}", "y = Slice(x, a, e, d, t)", "x0:2 x2:5"),
    Case("slice_computed", "x:2,7,5 a:i1 e={4} d={1}", "y = Slice(x, a, e, d)", ""),
    Case("gather", "x:2,7,5 i={0,2,5}", "y = Gather<axis=1>(x, i)", "x0:2 x1:3 x1:4 x2:5"),
    Case("gather_order", "x:2,7,5 i={-1,2,0,5}", "y = Gather<axis=1>(x, i)", "x0:2 x1:4 x1:3 x2:5"),
    Case("gather_twice", "x:2,7 i={3,3,1} w=3", "y = Gather<axis=1>(x, i) z = Mul(y, w)", "x0:2 x1:5"),
    Case("gather_single", "x:2,7,5 i=#3", "y = Gather<axis=1>(x, i)", "x0:2 x2:5"),
    Case("gather_embedding", "i:i2,3 w=9,6", "y = Gather(w, i)", "i0:2 i1:3 w1:6"),
)  # fmt: skip

RESHAPING = (
    Case("reshape_merge", "x:2,6,2,3 s={2,36}", "y = Reshape(x, s)", "x0:2 x1:6"),
    Case("reshape_rest", "x:2,6,2,3 s={2,-1}", "y = Reshape(x, s)", "x0:2 x1:6"),
    Case("reshape_copied", "x:2,6,2,3 s={0,-1,3}", "y = Reshape(x, s)", "x0:2 x1:6 x3:3"),
    Case("reshape_heads", "x:2,5,12 s={2,5,3,4}", "y = Reshape(x, s)", "x0:2 x1:5 x2:3"),
    Case("reshape_heads_copied", "x:2,5,12 s={0,0,3,4}", "y = Reshape(x, s)", "x0:2 x1:5 x2:3"),
    Case("reshape_heads_back", "x:2,5,3,4 s={0,0,12}", "y = Reshape(x, s)", "x0:2 x1:5 x2:3"),
    Case("reshape_fused_qkv", "x:2,5,24 s={0,5,3,2,4} i=#1", "v = Reshape(x, s) y = Gather<axis=2>(v, i)", "x0:2 x1:5 x2:2"),
    Case("reshape_ones", "x:2,6 s={2,6,1,1}", "y = Reshape(x, s)", "x0:2 x1:6"),
    Case("reshape_no_common_factor", "x:4,6 s={3,8}", "y = Reshape(x, s)", ""),
    Case("reshape_partly", "x:5,4,6 s={5,3,8}", "y = Reshape(x, s)", "x0:5"),
    Case("reshape_computed_constant", "x:2,6,4 a={2} b={24}", "s = Concat<axis=0>(a, b) y = Reshape(x, s)", "x0:2 x1:6"),
    Case("reshape_from_shape", "x:2,6,4 w=6,1 i=#0 z={0} m={-1}",
         "t = Mul(x, w) s = Shape(t) n = Gather(s, i) k = Unsqueeze(n, z) p = Concat<axis=0>(k, m) y = Reshape(t, p)",
         "x0:2 x1:6"),
    Case("reshape_from_shape_split", "x:2,5,12 i=#0 j=#1 z={0} h={3} d={4}",
         "s = Shape(x) n = Gather(s, i) k = Unsqueeze(n, z) m = Gather(s, j) l = Unsqueeze(m, z) "
         "p = Concat<axis=0>(k, l, h, d) y = Reshape(x, p)", "x0:2 x1:5 x2:3"),
    Case("reshape_copied_elsewhere", "x:4,4,6 s={-1,0,3}", "y = Reshape(x, s)", "x1:2 x2:2"),
    Case("flatten", "x:2,6,2,3", "y = Flatten(x)", "x0:2 x1:6"),
    Case("flatten_0", "x:4,6", "y = Flatten<axis=0>(x)", "x0:4"),
    Case("flatten_2", "x:2,6,4,3", "y = Flatten<axis=2>(x)", "x0:2 x2:4"),
    Case("flatten_all", "x:2,6", "y = Flatten<axis=2>(x)", "x0:2"),
    Case("flatten_negative", "x:2,6,4", "y = Flatten<axis=-1>(x)", "x0:2 x2:4"),
    Case("transpose", "x:2,6,4", "y = Transpose<perm=[2,0,1]>(x)", "x0:2 x1:6 x2:4"),
    Case("transpose_equal_sizes", "x:4,4,4", "y = Transpose<perm=[2,0,1]>(x)", "x0:4 x1:4 x2:4"),
    Case("transpose_default", "x:2,6,4", "y = Transpose(x)", "x0:2 x1:6 x2:4"),
    Case("squeeze", "x:2,1,6 d={1}", "y = Squeeze(x, d)", "x0:2 x2:6"),
    Case("squeeze_attribute", "x:1,2,6,1", "y = Squeeze<axes=[0,-1]>(x)", "x1:2 x2:6", 11),
    Case("squeeze_every_one", "x:2,1,6,1", "y = Squeeze(x)", "x0:2 x2:6"),
    Case("unsqueeze", "x:2,6 d={0,3}", "y = Unsqueeze(x, d)", "x0:2 x1:6"),
    Case("unsqueeze_attribute", "x:2,6", "y = Unsqueeze<axes=[1]>(x)", "x0:2 x1:6", 11),
    Case("expand", "x:2,1,4 s={2,6,4} w=6,1", "v = Expand(x, s) y = Mul(v, w)", "x0:2 w0:6 x2:4"),
    Case("expand_shorter", "x:2,1,4 s={6,1} w=6,1", "v = Expand(x, s) y = Mul(v, w)", "x0:2 w0:6 x2:4"),
    Case("expand_new_axis", "x:6,4 s={3,1,1} w=3,1,1", "v = Expand(x, s) y = Mul(v, w)", "w0:3 x0:6 x1:4"),
    Case("expand_ones", "x:2,6,4 s={1,1,1}", "y = Expand(x, s)", "x0:2 x1:6 x2:4"),
    Case("tile", "x:2,3,4 r={1,2,1}", "y = Tile(x, r)", "x0:2 x1:3 x2:4"),
    Case("tile_one", "x:2,1,4 r={1,6,1} w=6,1", "v = Tile(x, r) y = Mul(v, w)", "x0:2 w0:6 x2:4"),
    Case("constant_of_shape", "x:2,6 s={6,4} w=4", "v = ConstantOfShape(s) c = Cast<to=11>(v) k = Add(c, w) y = MatMul(x, k)",
         "x0:2 x1:6 w0:4"),
    Case("depth_to_space", "x:2,24,3,3", "y = DepthToSpace<blocksize=2>(x)", "x0:2 x1:6"),
    Case("depth_to_space_crd", "x:2,24,3,3", 'y = DepthToSpace<blocksize=2, mode="CRD">(x)', "x0:2 x1:6"),
    Case("space_to_depth", "x:2,6,4,4", "y = SpaceToDepth<blocksize=2>(x)", "x0:2 x1:6"),
    Case("pad", "x:2,6,4 p={0,0,1,0,0,2}", "y = Pad(x, p)", "x0:2 x1:6 x2:4"),
    Case("pad_attribute", "x:2,6,4", "y = Pad<pads=[0,0,1,0,0,2]>(x)", "x0:2 x1:6 x2:4", 10, "runtime"),
    Case("pad_axes", "x:2,6,4 p={1,2} d={-1}", "y = Pad(x, p, , d)", "x0:2 x1:6 x2:4", 18),
    Case("pad_reflect", "x:2,6,4 p={0,0,1,0,0,2}", 'y = Pad<mode="reflect">(x, p)', "x0:2 x1:6"),
    Case("pad_crops", "x:2,6,4 p={0,0,-1,0,0,0}", "y = Pad(x, p)", "x0:2 x1:6", run="runtime"),
    Case("pad_channels", "x:2,6,4 p={0,1,0,0,2,0} w=9,1", "v = Pad(x, p) y = Add(v, w)", "x0:2 x1:6 w0:3 x2:4"),
    Case("pad_channels_attribute", "x:2,6,4 w=9,1", "v = Pad<pads=[0,1,0,0,2,0], value=0.5>(x) y = Add(v, w)",
         "x0:2 x1:6 w0:3 x2:4", 10, "runtime"),
    Case("pad_channels_axes", "x:2,6,4 p={1,2} d={1} c=() w=9,1", "v = Pad(x, p, c, d) y = Add(v, w)",
         "x0:2 x1:6 w0:3 x2:4", 18),
    Case("pad_computed", "x:2,6,4 p:i6", "y = Pad(x, p)", ""),
    Case("resize_scales", "x:2,6,4,4 s=f{1,1,2,2}", "y = Resize(x, , s)", "x0:2 x1:6"),
    Case("resize_sizes", "x:2,6,4,4 s={2,6,8,8}", "y = Resize(x, , , s)", "x0:2 x1:6"),
    Case("resize_axes", "x:2,6,4,4 s={8,8}", "y = Resize<axes=[2,3]>(x, , , s)", "x0:2 x1:6", 18),
    Case("resize_old", "x:2,6,4,4 s=f{1,1,2,2}", "y = Resize(x, s)", "x0:2 x1:6", 10, "runtime"),
    Case("resize_hardly", "x:2,6,4,4 s=f{1,1,1.2,1.2}", 'y = Resize<mode="linear">(x, , s)', "x0:2 x1:6", run="runtime"),
    Case("upsample", "x:2,6,4,4 s=f{1,1,2,2}", "y = Upsample(x, s)", "x0:2 x1:6", 9, "runtime"),
)  # fmt: skip

REDUCTION = (
    *(Case(op.lower(), "x:2,6,4", f"y = {op}<axes=[1], keepdims=0>(x)", "x0:2 x1:6 x2:4", 11) for op in SUMS),
    *(Case(op.lower(), "x:2,6,4", f"y = {op}<axes=[-2], keepdims=1>(x)", "x0:2 x2:4", 11) for op in OTHER_REDUCTIONS),
    Case("reduce_sum_input", "x:2,6,4 d={1,-1}", "y = ReduceSum<keepdims=0>(x, d)", "x0:2 x1:6 x2:4"),
    Case("reduce_sum_all", "x:2,6,4", "y = ReduceSum<keepdims=0>(x)", "x0:2 x1:6 x2:4"),
    Case("reduce_sum_nothing", "x:2,6,4", "y = ReduceSum<noop_with_empty_axes=1>(x)", "x0:2 x1:6 x2:4"),
    Case("reduce_sum_computed", "x:2,6,4 d:i1", "y = ReduceSum(x, d)", ""),
    Case("reduce_mean_space", "x:2,6,4,3", "y = ReduceMean<axes=[2,3]>(x)", "x0:2 x1:6 ~x2:4 ~x3:3"),
    Case("reduce_mean_channels", "x:2,6,4", "y = ReduceMean<axes=[1], keepdims=0>(x)", "x0:2 ~x1:6 x2:4"),
    Case("reduce_mean_input", "x:2,6,4 d={2}", "y = ReduceMean<keepdims=0>(x, d)", "x0:2 x1:6 ~x2:4", 18),
    Case("reduce_max_input", "x:2,6,4 d={1}", "y = ReduceMax(x, d)", "x0:2 x2:4", 18),
    Case("arg_max", "x:2,6,4", "y = ArgMax<axis=1>(x)", "x0:2 x2:4"),
    Case("arg_min", "x:2,6,4", "y = ArgMin<axis=-2, keepdims=0>(x)", "x0:2 x2:4"),
    Case("top_k", "x:2,6,4 k={3}", "y, i = TopK<axis=1>(x, k)", "x0:2 x2:4"),
    Case("cum_sum", "x:2,6,4 d=#1", "y = CumSum(x, d)", "x0:2 x2:4"),
)  # fmt: skip

QUANTIZED = (
    Case("quantize", "x:2,6,4 s=f#0.1 z=u()", "y = QuantizeLinear(x, s, z)", "x0:2 x1:6 x2:4", run="float"),
    Case("quantize_channels", "x:2,6,4 s=+6 z=u6", "y = QuantizeLinear<axis=1>(x, s, z)", "x0:2 x1:6 x2:4", run="float"),
    Case("dequantize", "x:u2,6,4 s=f#0.1 z=u()", "y = DequantizeLinear(x, s, z)", "x0:2 x1:6 x2:4", 19, "float"),
    Case("dequantize_weight", "x:2,6,5,5 q=n8,6,3,3 s=+8 z=n8", "w = DequantizeLinear<axis=0>(q, s, z) y = Conv(x, w)",
         "x0:2 x1:6 q0:8", 19, "float"),
    Case("dequantize_bias", "x:5,6 q=n8,6 s=+8 b=h8", "w = DequantizeLinear<axis=-2>(q, s) c = DequantizeLinear<axis=0>(b, s) "
         "y = Gemm<transB=1>(x, w, c)", "x0:5 x1:6 q0:8", 19, "float"),
    Case("quantize_blocked", "x:2,6,4 s=+2,3,4", "y = QuantizeLinear<axis=1, block_size=2>(x, s)", "", 21, "float"),
)  # fmt: skip

SHAPES = (
    Case("constant", "x:2,6", "w = Constant<value_floats=[1.5,2.5,3.5,4.5,5.5,6.5]>() y = Mul(x, w)", "x0:2 x1:6", run="float"),
    Case("constant_tensor", "x:2,3", "w = Constant<value=double[3] {1.5,2.5,3.5}>() y = Mul(x, w)", "x0:2 x1:3"),
    Case("size_as_data", "x:2,6", "n = Size(x) f = Cast<to=11>(n) y = Div(x, f)", ""),
    Case("length_as_data", "x:2,6 i=#1", "s = Shape(x) n = Gather(s, i) f = Cast<to=11>(n) y = Div(x, f)", "x0:2"),
    Case("shape_range", "x:2,6 w=9,4 i=#1 o=#0 e=#1", "s = Shape(x) n = Gather(s, i) p = Range(o, n, e) v = Gather(w, p) "
         "y = MatMul(x, v)", "x0:2 w1:4"),
)  # fmt: skip

CASES = (
    *CONVOLUTION, *LINEAR, *NORMALIZATION, *ELEMENTWISE, *POOLING, *JOINING, *RESHAPING, *REDUCTION, *QUANTIZED, *SHAPES,
)  # fmt: skip
