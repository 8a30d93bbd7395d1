import asyncio
import inspect
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from offline import cli
from offline.cli import main
from offline.errors import StageError
from offline.results.runs import load_runs
from service.cli import app as serve_app
from service.settings import RedisSettings
from service.store.keys import RELEASE_POINTER
from service.store.lmdb import LmdbStore
from tests.offline.results.made import evaluated
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


class Outcome:
    """What a command wrote, and its exit status."""

    def __init__(self, code: Any, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Scoter:
    """The command, in this process, as the console script calls it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["scoter", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return Outcome(left.value.code, *self._capsys.readouterr())

    def fails(self, *arguments: str | Path) -> str:
        """The one line of a command that fails."""
        outcome = self(*arguments)
        assert outcome.code == 1
        assert outcome.err.startswith("scoter: ")
        assert outcome.err.count("\n") == 1
        return outcome.err.removeprefix("scoter: ").rstrip("\n")


@pytest.fixture
def scoter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scoter:
    return Scoter(monkeypatch, capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [f"u{user}\ti{item}\t{item}\n" for user in range(6) for item in range(6)]
    (folder / "toy.inter").write_text(HEADER + "".join(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_the_stages_in_order_and_the_first_steps(scoter: Scoter, arguments: list[str]) -> None:
    outcome = scoter(*arguments)
    assert outcome.code == (0 if arguments else 2)
    shown = outcome.out + outcome.err
    commands = shown[shown.index("Commands") :]
    stages = [
        "sample",
        "run",
        "prepare",
        "tokenize",
        "reason",
        "train",
        "evaluate",
        "export",
        "publish",
        "rollback",
        "gc",
    ]
    places = [commands.index(f" {stage} ") for stage in stages]
    assert places == sorted(places)
    for step in (
        "scoter sample data/sample",
        "scoter run sample --data data/sample --work out",
        "scoter publish --work out --store out/store",
        "scoter-serve --releases out/releases --store out/store",
    ):
        assert step in shown
    assert "[bold]" not in shown


def test_help_fits_a_terminal_of_80_columns() -> None:
    """Its lines are shown as they stand, but for the first paragraph: a longer one would be broken in two."""
    callbacks = [
        command.callback
        for typed in (cli.app, cli.results, cli.triton, serve_app)
        for command in typed.registered_commands
    ]
    for callback in callbacks:
        _, _, rest = (inspect.getdoc(callback) or "").partition("\n\n")
        assert [line for line in rest.splitlines() if len(line) > 78] == []


def test_help_needs_no_torch() -> None:
    code = "import sys; from offline import cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_sample_is_written_and_prepared(scoter: Scoter, tmp_path: Path) -> None:
    folder = tmp_path / "[bold]sample"
    outcome = scoter("sample", folder, "--users", "150", "--items", "60")
    assert outcome.code == 0
    assert str(folder) in outcome.out.replace("\n", "")
    assert {path.name for path in folder.iterdir()} == {"sample.inter", "sample.item", "README.txt"}
    for said in (" s (", "up to date"):
        outcome = scoter("prepare", "sample", "--data", folder, "--work", tmp_path / "out")
        assert (outcome.code, outcome.err) == (0, "")
        assert said in outcome.out
    assert scoter.fails("sample", tmp_path).startswith(f"{tmp_path} exists and is no sample")


def test_data_that_is_not_there(scoter: Scoter, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    said = scoter.fails("prepare", "sample", "--data", absent, "--work", tmp_path / "out")
    assert said == f"{absent} is not a folder: give the folder that holds NAME.inter and NAME.item"
    assert not (tmp_path / "out").exists()


def test_a_malformed_row_is_named_and_nothing_is_left(scoter: Scoter, data: Path, tmp_path: Path) -> None:
    with (data / "toy.inter").open("a", encoding="utf-8") as file:
        file.write("u0\ti0\tlate\n")
    said = scoter.fails("prepare", "sample", "--data", data, "--work", tmp_path / "out")
    assert said == f"{data / 'toy.inter'}, line 38: timestamp 'late' is not a number"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_recipe_at_fault(scoter: Scoter, data: Path, tmp_path: Path) -> None:
    assert scoter.fails("train", "movies", "--data", data).startswith("no recipe 'movies': give a .toml file or one")
    own = tmp_path / "own.toml"
    own.write_text('name = "own"\n[train]\nepochs = 0\nlr = 1\n', encoding="utf-8")
    said = scoter.fails("run", own, "--data", data, "--work", tmp_path / "out")
    assert said.startswith(f"recipe {own}: train.epochs: Input should be greater than or equal to 1; train.lr: ")
    own.write_text("[a\n", encoding="utf-8")
    assert scoter.fails("run", own, "--data", data).startswith(f"recipe {own} is not TOML: ")


def test_a_work_folder_that_is_a_file(scoter: Scoter, data: Path) -> None:
    work = data / "toy.inter"
    said = scoter.fails("prepare", "sample", "--data", data, "--work", work)
    assert said.startswith(f"cannot make the work folder {work}: ")


@pytest.mark.parametrize(
    "message, shown",
    [
        ("H is [U, K], expected [U, K, D]", "H is [U, K], expected [U, K, D]"),
        ("[dim]dim[/dim] [/x] [bold", "[dim]dim[/dim] [/x] [bold"),
        ("in /data/[old]/:smile:/x\\[a]", "in /data/[old]/:smile:/x\\[a]"),
        ("first\n   second\r\nthird", "first second third"),
        ("word " * 100, ("word " * 100).rstrip()),
    ],
)
def test_a_message_is_shown_as_it_is_on_one_line(
    scoter: Scoter, data: Path, monkeypatch: pytest.MonkeyPatch, message: str, shown: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StageError(message)

    monkeypatch.setattr(cli, "_run_to", fail)
    assert scoter.fails("train", "sample", "--data", data).rstrip() == shown


def test_a_path_with_brackets_is_shown_as_it_is(scoter: Scoter, tmp_path: Path) -> None:
    absent = tmp_path / "[red]data[/"
    said = scoter.fails("prepare", "sample", "--data", absent)
    assert said.startswith(f"{absent} is not a folder")


def test_a_fault_of_the_program_keeps_its_traceback(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(cli, "_run_to", fail)
    monkeypatch.setattr(sys, "argv", ["scoter", "train", "sample", "--data", str(data)])
    with pytest.raises(RuntimeError, match="bug"):
        main()


@pytest.mark.parametrize("arguments", [["bake"], ["prepare", "sample"], ["sample", "out", "--users", "3"]])
def test_a_wrong_command_line_is_the_caller_s(scoter: Scoter, arguments: list[str]) -> None:
    outcome = scoter(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("Usage: ")
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("stage", ["prepare", "tokenize", "train", "evaluate", "export"])
def test_each_stage_runs_up_to_itself(scoter: Scoter, data: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cli, "_run_to", lambda *arguments, **_: calls.append(arguments))
    assert scoter(stage, "sample", "--data", data).code == 0
    assert calls == [(stage, "sample", data, Path("out"))]


def test_an_evaluation_is_kept_under_the_name_it_is_given(
    scoter: Scoter, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    stages: list[str] = []

    def run_to(last: str, *_: Any, **__: Any) -> Path:
        stages.append(last)
        return evaluated(work, {}, {("hstu", False): 0.2})

    monkeypatch.setattr(cli, "_run_to", run_to)
    assert scoter("evaluate", "sample", "--data", data, "--keep", "first").code == 0
    assert [run.name for run in load_runs(tmp_path / "docs" / "results").runs] == ["first"]
    outcome = scoter("evaluate", "sample", "--data", data, "--keep", "../first")
    assert outcome.code == 1
    assert "cannot name a run" in outcome.err
    assert stages == ["evaluate"]  # nothing was evaluated for a name that cannot be


@pytest.mark.parametrize("store", [None, "somewhere"])
def test_a_run_publishes_when_asked_to(
    scoter: Scoter, data: Path, monkeypatch: pytest.MonkeyPatch, store: str | None
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cli, "_run_to", lambda *_, **__: data / "release")
    monkeypatch.setattr(cli, "_publish", lambda *arguments: calls.append(arguments))
    assert scoter("run", "sample", "--data", data, *(["--store", store] if store else [])).code == 0
    assert calls == ([(data / "release", store)] if store else [])


def live(store: Path) -> bytes | None:
    async def read() -> bytes | None:
        opened = LmdbStore(store)
        (found,) = await opened.get([RELEASE_POINTER])
        await opened.close()
        return found

    return asyncio.run(read())


def exported(work: Path, release: str) -> None:
    (work / "export-0123").mkdir()
    (work / "export-0123" / "release").write_text(release + "\n", encoding="ascii")


def test_publish_says_what_is_live_now(scoter: Scoter, own: Path, tmp_path: Path) -> None:
    exported(tmp_path, own.name)
    outcome = scoter("publish", "--work", tmp_path, "--store", tmp_path / "store")
    assert (outcome.code, outcome.err) == (0, "")
    line = next(line for line in outcome.out.splitlines() if "published" in line)
    assert line.startswith(f"✓ published {own.name}: 6 users, 18 records, ")
    assert line.endswith(" records/s")  # on one line, however long
    assert live(tmp_path / "store") == own.name.encode()


def test_publish_takes_a_release_by_its_id(scoter: Scoter, own: Path, tmp_path: Path) -> None:
    outcome = scoter("publish", "--work", tmp_path, "--store", tmp_path / "store", "--release", own.name)
    assert outcome.code == 0
    assert own.name in outcome.out


def test_publish_without_a_release(scoter: Scoter, tmp_path: Path) -> None:
    said = scoter.fails("publish", "--work", tmp_path, "--store", tmp_path / "store")
    assert said == f"{tmp_path} holds no release: run `scoter run` first"
    said = scoter.fails("publish", "--work", tmp_path, "--store", tmp_path / "store", "--release", "0" * 16)
    assert said == f"{tmp_path / 'releases'} holds no release {'0' * 16}: run `scoter run` first"
    (tmp_path / "releases" / ("1" * 16)).mkdir(parents=True)
    said = scoter.fails("publish", "--work", tmp_path, "--store", tmp_path / "store", "--release", "0" * 16)
    assert said == f"{tmp_path / 'releases'} holds no release {'0' * 16}, only {'1' * 16}"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", ["gc", "rollback"])
def test_a_folder_without_a_store_is_not_taken_for_an_empty_one(scoter: Scoter, tmp_path: Path, command: str) -> None:
    said = scoter.fails(command, "--store", tmp_path / "stroe")
    assert said == f"{tmp_path / 'stroe'} holds no store: name the folder that `scoter publish` wrote, or a Redis URL"
    assert list(tmp_path.iterdir()) == []


def test_a_triton_repository_that_is_not_there_or_empty(scoter: Scoter, tmp_path: Path) -> None:
    said = scoter.fails("triton", "list", "--repository", tmp_path / "modles")
    assert said.startswith(f"{tmp_path / 'modles'} is no folder: name the deployment repository")
    outcome = scoter("triton", "list", "--repository", tmp_path)
    assert (outcome.code, outcome.out) == (0, f"{tmp_path} holds no models\n")


def test_results_are_written_where_there_are_some(scoter: Scoter, tmp_path: Path) -> None:
    said = scoter.fails("results", "write", "--docs", tmp_path / "docs" / "results")
    assert said.startswith(f"{tmp_path / 'docs' / 'results'} is not a folder: run this in the root of a checkout")


def test_a_corrupt_release_is_not_published(scoter: Scoter, own: Path, tmp_path: Path) -> None:
    (own / "reasoning" / "users.jsonl").write_text("{}\n", encoding="utf-8")
    said = scoter.fails("publish", "--work", tmp_path, "--store", tmp_path / "store", "--release", own.name)
    assert said.startswith(f"{own / 'reasoning' / 'users.jsonl'} is 3 bytes long, the manifest says ")
    assert live(tmp_path / "store") is None


def test_redis_that_is_down(scoter: Scoter, own: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    said = scoter.fails("publish", "--work", tmp_path, "--store", url, "--release", own.name)
    assert said.startswith("Redis failed: ")
    assert f"127.0.0.1:{port}" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@localhost:port/0",
        "redis://:secret@localhost:99999/0",
        "redis://:sec/ret@localhost:6379",
        "redis://:secret@local[host",
        "rediss+sentinel://:secret@localhost",
        "redis://:secret@localhost?pool=secret",
        "mysql://:secret@localhost",
    ],
)
def test_a_store_s_url_that_is_none(scoter: Scoter, own: Path, tmp_path: Path, url: str) -> None:
    said = scoter.fails("publish", "--work", tmp_path, "--store", url, "--release", own.name)
    assert said.startswith("the URL of the store cannot be used: ")
    assert not any(part in said for part in ("secret", "sec", "ret@", "localhost"))


def test_publishing_is_as_patient_as_the_environment_says(
    scoter: Scoter, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[RedisSettings] = []

    def refuse(settings: RedisSettings) -> NoReturn:
        opened.append(settings)
        raise StageError("seen enough")

    monkeypatch.setattr(cli, "open_store", refuse)
    monkeypatch.setenv("SCOTER_STORE__WRITE_TIMEOUT_MS", "60000")
    scoter.fails("publish", "--work", tmp_path, "--store", "redis://here", "--release", own.name)
    (settings,) = opened
    assert (settings.write_timeout_ms, settings.read_timeout_ms) == (60_000, 60_000)
    assert settings.connect_timeout_ms == 2_000


def test_a_store_that_is_a_file(scoter: Scoter, own: Path, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    said = scoter.fails("publish", "--work", tmp_path, "--store", tmp_path / "store", "--release", own.name)
    assert said.startswith(f"cannot open the LMDB store in {tmp_path / 'store'}: ")


def test_an_interrupted_command_says_how_to_go_on(
    scoter: Scoter, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("offline.prepare.read_interactions", stop)
        outcome = scoter("prepare", "sample", "--data", data, "--work", tmp_path / "out")
    assert outcome.code == 130
    assert outcome.err == "scoter: interrupted; the same command goes on from here\n"
    assert scoter("prepare", "sample", "--data", data, "--work", tmp_path / "out").code == 0


def test_ctrl_c_ends_a_process_without_a_traceback() -> None:
    stage = "lambda *_, **__: (print('up', flush=True), time.sleep(60))"
    # Whoever starts the tests in the background may have SIGINT ignored, which processes inherit.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import signal, time; {heard}; from offline import cli; cli._run_to = {stage}; cli.main()"
    command = [sys.executable, "-c", code, "prepare", "sample", "--data", "."]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "scoter: interrupted; the same command goes on from here\n"


def test_distillation_without_cross_fitting_is_one_line(scoter: Scoter, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "one.toml"
    recipe.write_text('name = "one"\n[distill]\nfolds = 1\n', encoding="utf-8")
    for more in ((), ("--compare",)):
        line = scoter.fails("distill", recipe, "--data", data, "--work", tmp_path / "out", *more)
        assert "folds = 2" in line
    assert not (tmp_path / "out").exists()


def test_distilling_under_an_unknown_template_is_one_line(scoter: Scoter, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "none.toml"
    recipe.write_text('name = "none"\n[reason]\ntemplate = "seven-step"\n', encoding="utf-8")
    line = scoter.fails("distill", recipe, "--data", data, "--work", tmp_path / "out")
    assert "no template 'seven-step'" in line


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the stages would have been asked for."""
    from offline import run

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(run, "run", lambda *given, **named: calls.append((given, named)))
    return calls


def test_reasoning_by_the_undistilled_model_and_on_ray(
    scoter: Scoter, data: Path, tmp_path: Path, asked: list[tuple[tuple[Any, ...], dict[str, Any]]]
) -> None:
    from offline.reason.cluster import Ray

    where = ("reason", "sample", "--data", data, "--work", tmp_path)
    for options in ((), ("--no-distill",), ("--engine", "ray", "--workers", "2")):
        assert scoter(*where, *options).code == 0
    assert [given[3] for given, _ in asked] == ["reason"] * 3
    assert [given[2].reason.writer for given, _ in asked] == ["teacher", "undistilled", "teacher"]
    engines = [named.get("engine") for _, named in asked]
    assert engines[:2] == [None, None]
    assert isinstance(engines[2], Ray)


def test_workers_of_no_cluster_are_refused(scoter: Scoter, data: Path, tmp_path: Path) -> None:
    said = scoter.fails("reason", "sample", "--data", data, "--work", tmp_path / "out", "--workers", "2")
    assert said == "--workers are those of a cluster: say --engine ray besides, or leave them out"


def test_ray_that_is_not_installed_is_asked_for_before_anything_is_done(
    scoter: Scoter, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = scoter.fails("reason", "sample", "--data", data, "--work", tmp_path / "out", "--engine", "ray")
    assert said == "--engine ray needs Ray: pip install -e '.[ray]' in a checkout"
    assert not (tmp_path / "out").exists()
