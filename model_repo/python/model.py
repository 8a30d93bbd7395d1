"""Triton's Python backend running a release's `model.onnx`, for a server that has no ONNX Runtime backend.

Lies beside the graph, in `<repository>/<model>/1/`. Its configuration says which inputs and outputs the graph has; the
server hands over what it has batched, and all of it goes through ONNX Runtime at once. One thread per instance: to use
more cores, configure more instances.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend  # the server brings it

Arrays = dict[str, Any]


class TritonPythonModel:
    """What the Python backend makes one of per instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph. An exception here is the reason that the server gives for not loading the model."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        expected = config["parameters"]["onnx_sha256"]["string_value"]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{path} has sha256 {found}, its configuration names {expected}: deploy it again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Instances share the machine: a thread that spins while it waits takes its core from another one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._ranks = {tensor.name: len(tensor.shape) for tensor in self._session.get_inputs()}
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer what the server has batched, in its order."""
        wanted = [request for request in requests if not request.is_cancelled()]
        answers = iter(self._answers([self._feeds(request) for request in wanted]) if wanted else ())
        return [next(answers) if request in wanted else _cancelled() for request in requests]

    def _answers(self, feeds: list[Arrays]) -> list[Any]:
        try:
            answers = self._run(feeds)
        except Exception:  # noqa: BLE001  # ONNX Runtime's have no common base class
            # One request that the graph refuses must not cost the others of its batch their answer.
            return [self._alone(feed) for feed in feeds]
        return [self._response(answer) for answer in answers]

    def _feeds(self, request: Any) -> Arrays:
        arrays = {}
        for name, rank in self._ranks.items():
            array = backend.get_input_tensor_by_name(request, name).as_numpy()
            # The server knows no tensor without a dimension beside the batch.
            arrays[name] = array.reshape(array.shape[:rank])
        return arrays

    def _alone(self, feed: Arrays) -> Any:
        try:
            (answer,) = self._run([feed])
        except Exception as error:  # noqa: BLE001  # neither here
            return backend.InferenceResponse(error=backend.TritonError(f"ONNX Runtime: {error}"))
        return self._response(answer)

    def _run(self, feeds: list[Arrays]) -> list[list[Any]]:
        """Outputs per request, from one run over the rows of all of them."""
        joined = {name: _joined([feed[name] for feed in feeds]) for name in self._ranks}
        outputs = self._session.run(self._outputs, joined)
        first = next(iter(self._ranks))
        ends = np.cumsum([len(feed[first]) for feed in feeds])[:-1]
        return [list(parts) for parts in zip(*(np.split(output, ends) for output in outputs), strict=True)]

    def _response(self, answer: list[Any]) -> Any:
        pairs = zip(self._outputs, answer, strict=True)
        return backend.InferenceResponse([backend.Tensor(name, np.ascontiguousarray(array)) for name, array in pairs])


def _cancelled() -> Any:
    return backend.InferenceResponse(error=backend.TritonError("the caller left", backend.TritonError.CANCELLED))


def _joined(arrays: list[Any]) -> Any:
    """Rows of all requests; those of ragged inputs are filled up with their last value, repeated for no effect."""
    widths = {array.shape[1:] for array in arrays}
    if len(widths) == 1:
        return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    joined = np.empty((sum(map(len, arrays)), max(width for (width,) in widths)), arrays[0].dtype)
    row = 0
    for array in arrays:
        joined[row : row + len(array), : array.shape[1]] = array
        joined[row : row + len(array), array.shape[1] :] = array[:, -1:]
        row += len(array)
    return joined
