"""Write `reference/`: what `scoter triton add` makes of a release of the paper's size, to read and to review.

python model_repo/write_reference.py
"""

from __future__ import annotations

from pathlib import Path

from offline.triton import Backend, Deployment, Profile, config_text
from service.engine.tensors import expected_inputs, expected_outputs
from service.release.manifest import ModelEntry, ReasoningEntry

FOLDER = Path(__file__).parent / "reference"
RELEASE = "0123456789abcdef"
SHA256 = "0" * 64
DEPLOYMENTS = {
    "cpu": Deployment(Profile.cpu, Backend.onnxruntime, instances=4),
    "cpu-python": Deployment(Profile.cpu, Backend.python, instances=4),
    "gpu": Deployment(Profile.gpu, Backend.onnxruntime, instances=2),
    "gpu-tensorrt": Deployment(Profile.gpu, Backend.onnxruntime, instances=2, tensorrt=True),
    "cpu-queue": Deployment(Profile.cpu, Backend.onnxruntime, instances=4, max_queue=256),
}
REASONING = ReasoningEntry(
    name="scoter_h",
    layout="projected",
    dtype="float16",
    steps=5,
    width=64,
    written=0,
    file="reasoning/scoter_h.npy",
)


def models() -> list[ModelEntry]:
    """Entries as in the manifest of a release."""
    return [_entry("hstu", None), _entry("scoter_h", REASONING)]


def configs() -> dict[Path, str]:
    """Every file of `reference/`, by its path."""
    return {
        FOLDER / name / entry.name / "config.pbtxt": config_text(entry, RELEASE, SHA256, how)
        for name, how in DEPLOYMENTS.items()
        for entry in models()
    }


def _entry(name: str, reasoning: ReasoningEntry | None) -> ModelEntry:
    draft = ModelEntry(
        name=name,
        backbone="hstu",
        file=f"models/{name}/1/model.onnx",
        history_length=20,
        beam=20,
        inputs=[],
        outputs=[],
        reasoning=reasoning,
        metrics={},
    )
    return draft.model_copy(update={"inputs": expected_inputs(draft), "outputs": expected_outputs(draft)})


if __name__ == "__main__":
    for path, text in configs().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
