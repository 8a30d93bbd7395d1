import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from offline.distill.examples import Example
from offline.errors import TrainingError
from offline.recipe import DistillRecipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]

# Runs a training that the kernel ends in the middle, as it does with one that takes too much memory.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from offline.distill import tune as module
from offline.distill.examples import Example
from offline.recipe import DistillRecipe

out, recipe, rows = Path(sys.argv[1]), DistillRecipe.model_validate_json(sys.argv[2]), json.loads(sys.argv[3])
examples = [Example(user, tuple(prompt), tuple(completion)) for user, prompt, completion in rows]
real = module._Watch.on_log

def on_log(self, args, state, control, logs=None, **rest):
    if state.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, args, state, control, logs, **rest)

module._Watch.on_log = on_log
module.tune(out, "student-0", examples[:36], examples[36:], recipe)
"""


@pytest.fixture
def recipe(student: Path) -> DistillRecipe:
    return DistillRecipe(
        student=str(student), epochs=1, batch=2, accumulate=2, rank=4, learning_rate=1e-2, max_length=200
    )


@pytest.fixture
def examples() -> list[Example]:
    return [Example(n, (2, 10 + n % 5, 11, 12, 13), (20 + n % 5, 30, 31, 32 + n % 3, 1)) for n in range(40)]


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def _rows(examples: list[Example]) -> str:
    return json.dumps([[example.user, example.prompt, example.completion] for example in examples])


def test_a_killed_training_ends_in_the_same_weights(
    recipe: DistillRecipe, examples: list[Example], tmp_path: Path
) -> None:
    from offline.distill.tune import tune

    whole = tune(tmp_path / "whole", "student-0", examples[:36], examples[36:], recipe)
    arguments = [str(tmp_path / "cut"), recipe.model_dump_json(), _rows(examples)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    checkpoints = tmp_path / "cut.checkpoints"
    assert not (tmp_path / "cut").exists()
    assert (checkpoints / "checkpoint-6").is_dir()
    torn = checkpoints / "checkpoint-8"  # cut off while it was written
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"epoch": 0.', encoding="utf-8")

    resumed = tune(tmp_path / "cut", "student-0", examples[:36], examples[36:], recipe)
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole") != {}
    assert resumed.steps == whole.steps == 9
    assert [row["step"] for row in resumed.curve] == [*range(1, 10), 9]
    losses = [[row.get("loss", row.get("held_out_loss")) for row in tuned.curve] for tuned in (whole, resumed)]
    assert losses[0] == losses[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "cut.checkpoints", "whole", "whole.checkpoints"]


def test_a_training_that_is_not_written_down_is_not_begun_anew(
    recipe: DistillRecipe, examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the student had its name and before its log had."""
    from offline.distill.tune import tune

    first = tune(tmp_path / "out", "student-0", examples[:36], examples[36:], recipe)
    made = _weights(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    again = tune(tmp_path / "out", "student-0", examples[:36], examples[36:], recipe)
    assert "student-0: going on from checkpoint-9" in capsys.readouterr().out
    assert _weights(tmp_path / "out") == made != {}
    assert again.steps == first.steps
    assert [row for row in again.curve if "loss" in row] == [row for row in first.curve if "loss" in row]


def test_a_loss_that_is_no_number_stops_and_spoils_no_checkpoint(
    recipe: DistillRecipe, examples: list[Example], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    from offline.distill.tune import tune

    wild = recipe.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"student-0: the loss is (nan|inf) at step \d+; the last good .* lower"):
        tune(tmp_path / "out", "student-0", examples, [], wild)
    assert not (tmp_path / "out").exists()
    kept = sorted((tmp_path / "out.checkpoints").iterdir())
    assert kept
    for tensor in load_file(kept[-1] / "adapter_model.safetensors").values():
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("method,precision", [("full", "float32"), ("lora", "bfloat16"), ("full", "bfloat16")])
def test_every_method_and_precision_learns(
    recipe: DistillRecipe, examples: list[Example], tmp_path: Path, method: str, precision: str
) -> None:
    from offline.distill.measure import held_out_losses
    from offline.distill.tune import tune

    chosen = recipe.model_copy(update={"method": method, "precision": precision, "epochs": 3})
    tuned = tune(tmp_path / "out", "student-0", examples[:36], examples[36:], chosen)
    assert (tuned.steps, tuned.examples, tuned.tokens) == (27, 36, 360)
    models = [None, tmp_path / "out", None]
    before, after, again = held_out_losses(recipe.student, models, chosen.method, "float32", examples[36:], 4)
    assert again == before
    assert after < before - 0.5
    held = [row["held_out_loss"] for row in tuned.curve if "held_out_loss" in row]
    assert held[-1] == pytest.approx(after, rel=0.05)
    assert len(held) == 3


def test_the_loss_is_of_completions_alone(recipe: DistillRecipe, examples: list[Example]) -> None:
    import torch

    from offline.distill.measure import completion_loss, load

    model = load(recipe.student, "float32")
    total, count = 0.0, 0
    for example in examples[:5]:
        ids = torch.tensor([[*example.prompt, *example.completion]])
        with torch.inference_mode():
            logs = model(input_ids=ids).logits.log_softmax(-1)[0]
        first = len(example.prompt)
        total -= sum(float(logs[at - 1, ids[0, at]]) for at in range(first, ids.shape[1]))
        count += len(example.completion)
    uneven = [examples[0], Example(9, (2, 3), (4, 1)), *examples[1:5]]
    assert completion_loss(model, examples[:5], 2) == pytest.approx(total / count, rel=1e-4)
    assert completion_loss(model, uneven, 1) == pytest.approx(completion_loss(model, uneven, 6), rel=1e-4)
