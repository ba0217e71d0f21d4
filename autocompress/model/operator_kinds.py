"""Operators by what they do to channels, by the names that PyTorch dispatches them under."""

from __future__ import annotations

SAME = {
    *("clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "dropout"),
    *("feature_dropout", "alpha_dropout", "positive", "_conj", "resolve_conj", "resolve_neg"),
}
RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
MOVES = {
    *("permute", "transpose", "t", "slice", "select", "unbind", "split", "split_with_sizes"),
    *("unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "chunk", "cat", "stack"),
    *("expand", "squeeze", "unsqueeze", "flip", "roll", "repeat", "index_select", "index"),
    *("gather", "pixel_shuffle", "pixel_unshuffle", "diagonal", "movedim", "unfold", "rot90"),
    *("repeat_interleave", "concat", "narrow", "tile"),
}
SHUFFLES = {"channel_shuffle", "native_channel_shuffle"}
POINTWISE = {
    *("_prelu_kernel", "prelu", "rrelu_with_noise", "hardswish", "log_sigmoid_forward"),
    *("floor_divide", "elementwise"),
}
MIXES = {
    *("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "cumsum", "logsumexp"),
    *("cumprod", "sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean"),
    *("std_mean", "linalg_vector_norm", "norm", "argmax", "argmin", "any", "all"),
}
AVERAGES = {"mean"}
SPATIAL = (
    *("max_pool", "avg_pool", "_adaptive", "adaptive", "upsample", "_upsample"),
    *("reflection_pad", "replication_pad"),
)
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"}
BATCH_NORMS = {
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "miopen_batch_norm"),
}
LAYER_NORMS = {"native_layer_norm", "_fused_rms_norm"}
