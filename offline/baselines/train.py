"""Stage `baseline-MODEL`: one model of RecBole with one choice of parameters.

Output folder:

    valid.npy, test.npy   int32 [U, depth]: items best first for each user, history not masked
    trained.json          parameters, best epoch, and loss, seconds and validation of each epoch
    recbole.log           what RecBole had to say
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import TextColumn

from offline.baselines.exchange import NAME, PLAIN, SEQUENTIAL, read_lists, write_benchmark
from offline.errors import StageError
from offline.prepare import load_dataset
from offline.progress import progress
from offline.ranking import depth
from offline.recipe import BaselineName, Recipe
from offline.stage import Stage, read_json, run_stage, write_json

VERSION = 1
_SCRIPT = Path(__file__).with_name("recbole_run.py")
_PLAIN_MODELS = {"LightGCN"}  # the others read sequences


def train_baseline(
    work: Path,
    prepared: Stage,
    model: BaselineName,
    parameters: dict[str, Any],
    recipe: Recipe,
    interpreter: Path,
    *,
    refit_epochs: int | None = None,
    title: str = "",
) -> Stage:
    """Run the stage with the interpreter of RecBole's environment. Raises StageError if RecBole fails.

    With `refit_epochs` the validation items are training targets too, and training goes on for that many epochs.
    """
    chosen = recipe.baselines
    settings: dict[str, Any] = {
        "model": model,
        "parameters": parameters,
        "length": recipe.model.length,
        **chosen.model_dump(exclude={"models", "grid"}),
        "refit_epochs": refit_epochs,
    }

    def build(folder: Path) -> None:
        dataset = load_dataset(prepared.folder)
        plain = model in _PLAIN_MODELS
        scratch = folder / "scratch"
        columns = PLAIN if plain else SEQUENTIAL
        job = {
            "data": str(scratch.absolute()),
            "dataset": NAME,
            "columns": columns,
            "negatives": plain,
            "items": dataset.num_items,
            "depth": depth(dataset),
            "refit": refit_epochs is not None,
            "out": str(scratch.absolute()),
            **settings,
            "epochs": refit_epochs or chosen.epochs,
        }
        _clear_unless_resuming(scratch, job)
        write_benchmark(scratch, dataset, columns, recipe.model.length, refit=refit_epochs is not None)
        _recbole(interpreter, scratch / "job.json", folder / "recbole.log", job["epochs"], title or model)
        for split in ("valid", "test"):
            read_lists(scratch / f"{split}.npy", dataset, job["depth"])
            (scratch / f"{split}.npy").rename(folder / f"{split}.npy")
        trained = read_json(scratch / "trained.json")
        write_json(folder / "trained.json", {"model": model, "parameters": parameters, **trained})
        shutil.rmtree(scratch)

    name = f"baseline-{model}" + ("-refit" if refit_epochs is not None else "")
    return run_stage(work, name, VERSION, settings, [prepared], build)


def trained(stage: Stage) -> dict[str, Any]:
    """What the stage has to say of itself."""
    told: dict[str, Any] = read_json(stage.folder / "trained.json")
    return told


def _clear_unless_resuming(scratch: Path, job: dict[str, Any]) -> None:
    """Empty the folder, unless a process was cut off in it at the very same job: RecBole goes on from there."""
    written, text = scratch / "job.json", json.dumps(job)
    if not (written.is_file() and written.read_text(encoding="utf-8") == text):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        written.write_text(text, encoding="utf-8")


def _recbole(interpreter: Path, job: Path, log: Path, epochs: int, title: str) -> None:
    """Run the script, and show its epochs while it does."""
    epochs_done = TextColumn("{task.completed}/{task.total} epochs {task.fields[found]}")
    with progress(count=epochs_done) as bars, log.open("w", encoding="utf-8") as errors:
        task = bars.add_task(title, total=epochs, found="")
        # Not in this process's environment of packages: `-I` keeps PYTHONPATH out.
        command = [str(interpreter), "-I", str(_SCRIPT), str(job)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    _show(line, lambda **what: bars.update(task, **what))
                code = process.wait()
            except BaseException:
                process.kill()
                raise
    if code:
        said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise StageError(f"{title} ended with {code}: {said[-1] if said else 'it said nothing'} (all of it in {log})")


def _show(line: str, update: Callable[..., None]) -> None:
    """Take a line of the script's output; other lines are RecBole's own."""
    try:
        said = json.loads(line)
        epoch = int(said["epoch"])
    except (ValueError, KeyError, TypeError):
        return
    if "validation" in said:
        update(found=f"NDCG@10 {said['validation']:.4f}")
    else:
        update(completed=epoch + 1)
