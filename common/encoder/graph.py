"""A BERT with mean pooling as an ONNX graph, written from its weights; no other framework is involved.

Devlin et al. 2019. All texts of a batch have the same number of tokens, so nothing is padded or masked. In eight bits
the dense layers are integer products (Jacob et al. 2018); see `quantised` for how they stay close to the original.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from common.encoder.weights import Floats, Shape, Weights

OPSETS: Final = {"": 21, "com.microsoft": 1}
IR_VERSION: Final = 10
TOKENS, VECTORS = "tokens", "vectors"
ORT: Final = "com.microsoft"  # ONNX Runtime's own operators
LEVELS: Final = 127  # of a sign
ZERO: Final = 128  # stands for 0 among the 256 levels of an activation
SMOOTHING: Final = (0.25, 0.5, 0.75)
OUTLIERS: Final = 8  # channels of a wide layer's input


class Sample(NamedTuple):
    """What a dense layer was given for some texts."""

    low: Floats  # (n_in,) over all their tokens
    high: Floats  # (n_in,)
    x: Floats  # (n_tokens, n_in), of some of them


class Dense(NamedTuple):
    """x @ w + b in eight bits: Q((x - middle) / unit) @ levels * scale + bias, and some channels as they were."""

    middle: Floats  # (n_in,)
    unit: Floats  # (n_in,)
    levels: NDArray[np.int8]  # (n_in, n_out)
    scale: Floats  # (n_out,)
    bias: Floats  # (n_out,)
    outliers: NDArray[np.int64]  # channels of the input; their levels are 0

    def __call__(self, x: Floats, w: Floats) -> Floats:
        """What the graph computes, (n, n_in) -> (n, n_out)."""
        q = np.clip(np.rint((x - self.middle) / self.unit * LEVELS), -ZERO, LEVELS) / LEVELS
        y = q @ (self.levels * self.scale) + self.bias + x[:, self.outliers] @ w[self.outliers]
        return np.asarray(y, np.float32)


def quantised(sample: Sample, w: Floats, b: Floats) -> Dense:
    """A dense layer (n_in, n_out) in eight bits, for inputs like the sample.

    Scales are constants, so a text's vector does not depend on what is in its batch. Weights are rounded per output.
    A few channels of a BERT are far larger than the rest: a part of that size is moved from the activations into the
    weights (Xiao et al. 2023, SmoothQuant), as much as errs least on the sample; the largest of a wide layer are left
    out of the rounding (Dettmers et al. 2022, LLM.int8). The mean error, which averaging over tokens would keep, is
    taken off the bias (Nagel et al. 2019).
    """
    low, high, x = sample
    middle = np.asarray((low + high) / 2, np.float32)
    half, wanted = np.maximum((high - low) / 2, 1e-6), x @ w + b
    wide = w.shape[0] > w.shape[1]
    outliers = np.argsort(-half * np.abs(w).max(1), kind="stable")[: OUTLIERS if wide else 0]
    rounded = np.ones(len(w), bool)
    rounded[outliers] = False
    tried = []
    for part in SMOOTHING:
        unit = half**part * (half ** (1 - part))[rounded].max()
        moved = np.where(rounded, unit, 0)[:, None] * w
        scale = np.maximum(np.abs(moved).max(0), 1e-12) / LEVELS
        layer = Dense(middle, unit, np.rint(moved / scale).astype(np.int8), scale, 0 * b, outliers)
        error = wanted - layer(x, w)
        tried.append((float(((error - error.mean(0)) ** 2).mean()), layer._replace(bias=error.mean(0))))
    return min(tried, key=lambda entry: entry[0])[1]


class _Graph:
    def __init__(self, weights: Weights, shape: Shape, samples: Mapping[str, Sample]) -> None:
        self.weights, self.shape, self.samples = weights, shape, samples
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, kind: type[np.generic] = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, kind, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def norm(self, x: str, name: str) -> str:
        scale, bias = (self.constant(self.weights[f"{name}.LayerNorm.{part}"]) for part in ("weight", "bias"))
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.shape.epsilon)

    def dense(self, x: str, *names: str) -> str:
        """Of several layers side by side."""
        w = np.concatenate([self.weights[f"{name}.weight"] for name in names]).T  # (n_in, n_out)
        b = np.concatenate([self.weights[f"{name}.bias"] for name in names])
        if names[0] not in self.samples:
            x = self.op("Identity", x, name=names[0])  # costs nothing; can be made an output
            return self.op("Add", self.op("MatMul", x, self.constant(w)), self.constant(b))
        layer = quantised(self.samples[names[0]], w, b)
        unit, zero = self.constant(1 / LEVELS), self.constant(ZERO, np.uint8)
        q = self.op("Mul", self.op("Sub", x, self.constant(layer.middle)), self.constant(1 / layer.unit))
        q = self.op("QuantizeLinear", q, unit, zero)
        y = self.op(
            "MatMulIntegerToFloat", q, self.constant(layer.levels, np.int8), unit, self.constant(layer.scale), zero,
            "", self.constant(layer.bias), domain=ORT,
        )  # fmt: skip
        if not len(layer.outliers):
            return y
        few = self.op("Gather", x, self.constant(layer.outliers, np.int64), axis=-1)
        return self.op("Add", y, self.op("MatMul", few, self.constant(w[layer.outliers])))


def build(weights: Weights, shape: Shape, samples: Mapping[str, Sample] = MappingProxyType({})) -> onnx.ModelProto:
    """tokens (n, length) int64 -> vectors (n, hidden) float32 of length 1.

    In eight bits are those dense layers of which there is a sample, by the names that
    `inputs` gives.
    """
    g = _Graph(weights, shape, samples)
    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    length = g.op("Shape", TOKENS, start=1, end=2)
    at = g.op("Slice", g.constant(positions), g.constant([0], np.int64), length, g.constant([0], np.int64))
    words = g.op("Gather", g.constant(weights["embeddings.word_embeddings.weight"]), TOKENS)
    x = g.norm(g.op("Add", words, at), "embeddings")  # (n, length, hidden)
    hidden = positions.shape[1]
    for layer in range(shape.layers):
        own = f"encoder.layer.{layer}"
        mixed = g.dense(x, *(f"{own}.attention.self.{part}" for part in ("query", "key", "value")))
        parts = [f"{own}.{part}" for part in ("query", "key", "value")]
        g.nodes.append(helper.make_node("Split", [mixed, g.constant([hidden] * 3, np.int64)], parts, axis=-1))
        seen = g.op("MultiHeadAttention", *parts, domain=ORT, num_heads=shape.heads)
        x = g.norm(g.op("Add", x, g.dense(seen, f"{own}.attention.output.dense")), f"{own}.attention.output")
        wide = g.op("Gelu", g.dense(x, f"{own}.intermediate.dense"), domain=ORT)
        x = g.norm(g.op("Add", x, g.dense(wide, f"{own}.output.dense")), f"{own}.output")
    mean = g.op("ReduceMean", x, g.constant([1], np.int64), keepdims=0)
    g.op("LpNormalization", mean, name=VECTORS, axis=-1, p=2)
    return helper.make_model(
        helper.make_graph(
            g.nodes, "encoder",
            [helper.make_tensor_value_info(TOKENS, TensorProto.INT64, ["n", "length"])],
            [helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, ["n", hidden])],
            g.constants,
        ),
        opset_imports=[helper.make_opsetid(*entry) for entry in OPSETS.items()],
        ir_version=IR_VERSION,
    )  # fmt: skip


def inputs(model: onnx.ModelProto) -> list[str]:
    """Of the dense layers of a graph that was built without samples; they become outputs, to be sampled."""
    names = [node.output[0] for node in model.graph.node if node.op_type == "Identity"]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return names
