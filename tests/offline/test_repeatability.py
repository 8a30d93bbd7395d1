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
import numpy as np
from offline.collaborative import collaborative_embeddings
from offline.prepare import prepare
from offline.quantize import ResidualKMeans
from offline.recipe import PrepareRecipe, RqvaeRecipe, TokenizeRecipe
from offline.rqvae import ResidualVAE
from offline.tokenize import tokenize

def show(name, *arrays):
    print("digest", name, *(hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16] for array in arrays))

data, work = Path(sys.argv[1]), Path(sys.argv[2])
prepared = prepare(work, data, PrepareRecipe())
for precision in ("float32", "bfloat16"):
    stage = tokenize(work, prepared, TokenizeRecipe(precision=precision, codebook=32))
    show(precision, *(np.fromfile(stage.folder / name, np.uint8) for name in ("embeddings.npy", "codes.npy")))
# More items than one thread takes of k-means at a time.
vectors = np.random.default_rng(0).standard_normal((1500, 48)).astype(np.float32)
found = ResidualKMeans(2, 48, 15, 7).fit(vectors)
show("rqkmeans", found.codes, *found.codebooks)
found = ResidualVAE(2, 32, 7, RqvaeRecipe(hidden=[64], epochs=4, batch=256), None).fit(vectors)
show("rqvae", found.codes, found.latents, *found.codebooks)
sequences = [np.random.default_rng(user).integers(1, 601, 12).astype(np.int32) for user in range(800)]
show("collaborative", collaborative_embeddings(sequences, 600, 32, 7))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_number_of_threads_changes_no_embedding_and_no_code(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", users=130, items=60)
    found = []
    for threads in ("1", "3"):
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads
        )
        # Waiting threads sleep: three of them on two cores would keep each other from working.
        environment["OMP_WAIT_POLICY"] = "passive"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "data"), str(tmp_path / threads)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append([line for line in done.stdout.splitlines() if line.startswith("digest")])
    assert len(found[0]) == 5
    assert found[0] == found[1]
