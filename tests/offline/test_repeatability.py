"""The same recipe and seed give the same files on one machine, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offline.sample import write_sample

SCRIPT = """
import hashlib, sys
from pathlib import Path
from offline.prepare import prepare
from offline.recipe import PrepareRecipe, TokenizeRecipe
from offline.tokenize import tokenize

folder = Path(sys.argv[1])
for precision, quantizer in (("float32", "rqkmeans"), ("bfloat16", "rqvae")):
    prepared = prepare(folder / sys.argv[2], Path(sys.argv[1]) / "data", PrepareRecipe())
    body = {"precision": precision, "quantizer": quantizer, "codebook": 32, "rqvae": {"epochs": 20, "batch": 64}}
    stage = tokenize(folder / sys.argv[2], prepared, TokenizeRecipe.model_validate(body))
    for name in ("embeddings.npy", "codes.npy", "summary.json"):
        print("digest", name, hashlib.sha256((stage.folder / name).read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_number_of_threads_changes_no_embedding_and_no_code(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", users=300, items=250)
    found = []
    for threads in ("1", "3"):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["OPENBLAS_NUM_THREADS"] = threads
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), threads],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append([line for line in done.stdout.splitlines() if line.startswith("digest")])
    assert len(found[0]) == 6
    assert found[0] == found[1]
