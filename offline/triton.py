"""`config.pbtxt`: a release's model as Triton Inference Server reads it."""

from __future__ import annotations

from pathlib import Path

from service.release.manifest import ModelEntry, TensorEntry

_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32", "bool": "TYPE_BOOL"}
MAX_BATCH = 64
QUEUE_TIMEOUT_MICROSECONDS = 20_000
MAX_QUEUE = 256

# Batches form while another one runs; what waits longer than its caller would is refused.
_BATCHING = f"""\
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {QUEUE_TIMEOUT_MICROSECONDS}
    allow_timeout_override: true
    max_queue_size: {MAX_QUEUE}
  }}
}}"""


def write_config(path: Path, model: ModelEntry) -> None:
    """Write the configuration of one model for the ONNX Runtime backend; batches form while a request runs."""
    parts = [
        f'name: "{model.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH}",
        *(_tensor("input", t) for t in model.inputs),
        *(_tensor("output", t) for t in model.outputs),
        "version_policy: { specific: { versions: [1] } }",
        _BATCHING,
    ]
    path.write_text("\n".join(parts) + "\n", encoding="ascii")


def _tensor(kind: str, tensor: TensorEntry) -> str:
    # Triton adds the batch dimension itself; a scalar per request is a tensor of one value there.
    dims = ["-1" if d is None else str(d) for d in tensor.shape[1:]]
    reshape = "" if dims else "\n  reshape: { shape: [] }"
    return (
        f"{kind} {{\n"
        f'  name: "{tensor.name}"\n'
        f"  data_type: {_TYPES[tensor.dtype]}\n"
        f"  dims: [{', '.join(dims) or '1'}]{reshape}\n"
        "}"
    )
