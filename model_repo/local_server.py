"""A real Triton Inference Server on this machine, without container, root or GPU.

    python3.11 model_repo/local_server.py --repository out/triton [--folder .tools/triton] [--port 8001]

NVIDIA publishes its server as a container image, and as a binary inside the wheel of `nvidia-pytriton`. This installs
that wheel through pip into a folder of its own, with what the Python backend needs to run `python/model.py`, and starts
it. It is what the tests and `make triton` use; to serve, use NVIDIA's image.

Needs Linux on x86-64, glibc 2.35 or newer, and a Python that comes with its shared library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# numpy 2 in the Python backend makes this server answer with empty tensors. onnxruntime as in locks/dev.txt.
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy==1.26.4", "onnxruntime==1.32.0")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not for temporary files: where the backend's segments appear
_STOP_SECONDS = 10.0


class ServerFailed(Exception):
    """The server cannot be installed or does not run; the message says why, and what to do."""


def install(folder: Path, tell: Callable[[], None] = lambda: None) -> Path:
    """Install the server into `folder` unless it is there; return the installation. About 100 MB come over the network.

    It appears by one rename, so a second call while the first one runs does no harm. Raises ServerFailed.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = folder / ("-".join(package.replace("==", "-") for package in PACKAGES) + f"-python-{version}")
    if home.is_dir():
        return home
    if shared_library() is None:
        raise ServerFailed(
            f"{sys.executable} has no shared library (libpython{version}.so.1.0), which the Python backend embeds: "
            f"take a Python built with --enable-shared, or install your system's libpython{version}"
        )
    tell()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        made = Path(scratch) / "server"
        venv.create(made, symlinks=True, with_pip=False)
        # Without dependencies: the server needs none of pytriton's, and ONNX Runtime runs a graph with numpy alone.
        command = [sys.executable, "-m", "pip", "--python", str(made / "bin" / "python"), "install", "--quiet"]
        command += ["--disable-pip-version-check", "--no-input", "--no-compile", "--no-deps", *PACKAGES]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise ServerFailed(f"pip cannot install {', '.join(PACKAGES)}:\n{done.stdout}")
        server = _packages(made) / "pytriton" / "tritonserver"
        shutil.copy2(
            server / "python_backend_stubs" / version / "triton_python_backend_stub", server / "backends" / "python"
        )
        with suppress(OSError):  # somebody was faster
            made.rename(home)
    return home


def shared_library() -> Path | None:
    """Folder of this Python's shared library, or None if it has none that the loader finds."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib"]
    return next((Path(folder) for folder in folders if folder and (Path(folder) / name).exists()), None)


def _packages(home: Path) -> Path:
    return home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


class Server:
    """One running server in a process group of its own."""

    def __init__(self, home: Path, repository: Path, port: int, log: Path, options: Sequence[str] = ()) -> None:
        """Start it. It controls models explicitly: add `--load-model=*` to load what is in the repository.

        Metrics are on the port after `port`, for gRPC, when `options` allow them.
        """
        self.port = port
        self.url = f"127.0.0.1:{port}"
        self.log = log
        self._segments = f"scoter-{os.getpid()}-{port}-"
        program = _packages(home) / "pytriton" / "tritonserver"
        command = [
            str(program / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={program / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._segments}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            "--exit-on-error=false",  # one model that does not load must not take the others with it
            "--disable-auto-complete-config",  # there is nothing to complete, and looking costs seconds per model
            "--allow-http=false",
            "--allow-metrics=false",
            "--allow-gpu-metrics=false",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
            "--exit-timeout-secs=5",
            *options,
        ]
        libraries = [_packages(home) / "nvidia_pytriton.libs", shared_library(), os.environ.get("LD_LIBRARY_PATH")]
        environment = os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(str(folder) for folder in libraries if folder),
            # The backend embeds a Python that takes no other hint at its packages than the first python3 on the path.
            "PATH": os.pathsep.join([str(home / "bin"), os.environ.get("PATH", os.defpath)]),
            "OMP_NUM_THREADS": "1",
        }
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def wait(self, seconds: float) -> None:
        """Wait until the server accepts connections. Raises ServerFailed, with the end of its log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ServerFailed(f"tritonserver ended with status {self.process.returncode}:\n{self.tail()}")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise ServerFailed(f"tritonserver was not up after {seconds:.0f} s:\n{self.tail()}")

    def signal(self, number: int) -> None:
        """Send a signal to the server and its model instances."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End the server and everything that it started, without asking."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        for segment in _SHARED_MEMORY.glob(self._segments + "*"):
            segment.unlink(missing_ok=True)

    def stop(self) -> None:
        """End the server and everything that it started; nothing of it stays behind."""
        self.signal(signal.SIGCONT)
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS)
        self.kill()

    def tail(self, lines: int = 20) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def running(
    home: Path, repository: Path, port: int, log: Path, options: Sequence[str] = (), seconds: float = 60.0
) -> Iterator[Server]:
    """A server that is up, and gone at the end."""
    server = Server(home, repository, port, log, options)
    try:
        server.wait(seconds)
        yield server
    finally:
        server.stop()


def main() -> None:
    """Run a server on a deployment repository until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a real Triton server on this machine, CPU only.")
    parser.add_argument("--folder", type=Path, default=Path(".tools/triton"), help="where the server is installed")
    parser.add_argument("--repository", type=Path, help="what `scoter triton add` wrote; none: install only")
    parser.add_argument("--port", type=int, default=8001, help="for gRPC; metrics are on the next one")
    asked = parser.parse_args()
    try:
        home = install(asked.folder.resolve(), lambda: print(f"▸ Installing Triton into {asked.folder}", flush=True))
        if asked.repository is None:
            return
        log = asked.folder / "server.log"
        log.unlink(missing_ok=True)
        options = ["--load-model=*", "--allow-metrics=true", f"--metrics-port={asked.port + 1}"]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with running(home, asked.repository, asked.port, log, options) as server:
            print(f"▸ Triton answers at {server.url}, metrics on port {asked.port + 1}; Ctrl-C stops it")
            print(f"  Its log is {log}. Point the service at it with\n")
            print(f"    SCOTER_ENGINE__KIND=triton SCOTER_ENGINE__URL={server.url}\n", flush=True)
            server.process.wait()
            raise ServerFailed(f"tritonserver ended with status {server.process.returncode}:\n{server.tail()}")
    except ServerFailed as error:
        sys.exit(f"triton: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
