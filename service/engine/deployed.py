"""What a release's model is called on a Triton server, and how its configuration there says which graph it is.

Two releases are on one server while a service swaps from one to the other. The name says which release a model is of,
so that no request can reach the other one's, and the digest of the graph proves that the name does not lie.
"""

from __future__ import annotations

VERSION = "1"  # the only one of every deployed model: what would be another version is another release
SHA256 = "onnx_sha256"  # the configuration's parameter that holds the digest of model.onnx

# By the manifest's name of a type: the configuration's name, and the one in requests.
TYPES = {
    "bool": ("TYPE_BOOL", "BOOL"),
    "uint8": ("TYPE_UINT8", "UINT8"),
    "int64": ("TYPE_INT64", "INT64"),
    "float32": ("TYPE_FP32", "FP32"),
}


def deployed_name(model: str, release_id: str) -> str:
    """The name of a release's model on a Triton server."""
    return f"{model}-{release_id}"
