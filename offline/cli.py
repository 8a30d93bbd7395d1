"""`scoter`: from interactions and item texts to a published release."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from offline.errors import OfflineError, StageError
from offline.publish import latest_release, named_release
from offline.publish import publish as publish_release
from offline.recipe import load_recipe, recipe_names
from offline.stage import console
from offline.triton import Backend, Deployment, Profile, add, deployed, load, loaded, remove, unload
from service.cli import store_settings
from service.errors import ScoterError
from service.release.manifest import listed
from service.release.release import Release
from service.settings import LmdbSettings, RedisSettings, TritonSettings, usable_cores
from service.store.base import Store
from service.store.lmdb import holds_store
from service.store.open import open_store

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Build and publish what the service serves.

    A run goes through six stages, each of which is skipped when nothing it reads
    has changed and goes on where it was interrupted: [bold]prepare[/],
    [bold]tokenize[/], [bold]reason[/], [bold]train[/], [bold]evaluate[/],
    [bold]export[/]; then [bold]publish[/] loads the release into a user store and
    makes it live.

    First steps:

        scoter sample data/sample
        scoter run sample --data data/sample --work out
        scoter publish --work out --store out/store
        scoter-serve --releases out/releases --store out/store
    """,
)
if TYPE_CHECKING:
    from offline.run import Last

_T = TypeVar("_T")
EngineName = Literal["local", "ray"]
_errors = Console(stderr=True)
INTERRUPTED = 130

RecipeArgument = Annotated[str, typer.Argument(help=f"A .toml file, or one of: {', '.join(recipe_names())}.")]
DataOption = Annotated[Path, typer.Option(help="Folder with NAME.inter and, if there are texts, NAME.item (RecBole).")]
WorkOption = Annotated[Path, typer.Option(help="Folder for the stages' outputs and for releases/.")]
StoreOption = Annotated[
    str,
    typer.Option(
        help="Folder of an LMDB store, or the URL of a Redis (docs/store.md). A URL with a password belongs in the "
        "environment: arguments are visible to every user of the machine.",
        envvar=["SCOTER_STORE__URL", "SCOTER_STORE__PATH"],
    ),
]


def _keepable(name: str | None) -> str | None:
    """Refuse what cannot name a run before hours are spent on it."""
    if name is not None:
        from offline.results.runs import check_name

        check_name(name)
    return name


KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep",
        help="Keep the figures under this name in docs/results, as `scoter results add` does.",
        metavar="NAME",
        callback=_keepable,
    ),
]
ProcessesOption = Annotated[int, typer.Option(min=1, help="Processes that train a model together, one to a GPU.")]


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to write sample.inter and sample.item into.")],
    users: Annotated[int, typer.Option(min=50, help="Simulated shoppers.")] = 1500,
    items: Annotated[int, typer.Option(min=50, help="Items on the shelves.")] = 600,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 7,
) -> None:
    """Simulate shoppers: a made-up data set to try everything on."""
    from offline.sample import write_sample

    found = write_sample(out, users=users, items=items, seed=seed)
    console.print(
        f"[green]✓[/] {escape(str(out))}: {found.users:,} simulated shoppers, {found.items:,} items, "
        f"{found.interactions:,} purchases",
        soft_wrap=True,
    )


@app.command()
def run(
    recipe: RecipeArgument,
    data: DataOption,
    work: WorkOption = Path("out"),
    store: Annotated[str | None, typer.Option(help="Publish there when done.", show_default="do not publish")] = None,
    processes: ProcessesOption = 1,
) -> None:
    """Run all stages, from interactions to a release.

    What is done already is not done again, and what was cut off goes on.

    Example:
        scoter run beauty --data path/to/folder --work out --store out/store
    """
    release = _run_to("export", recipe, data, work, processes=processes)
    if store is not None:
        _publish(release, store)


@app.command()
def prepare(recipe: RecipeArgument, data: DataOption, work: WorkOption = Path("out")) -> None:
    """Stage 1: read interactions, filter to the 5-core, order them into sequences."""
    _run_to("prepare", recipe, data, work)


@app.command()
def tokenize(recipe: RecipeArgument, data: DataOption, work: WorkOption = Path("out")) -> None:
    """Stage 2: embed item texts and quantise them into unique semantic IDs."""
    _run_to("tokenize", recipe, data, work)


@app.command()
def discover(
    recipe: RecipeArgument,
    data: DataOption,
    work: WorkOption = Path("out"),
    also: Annotated[
        list[Path] | None,
        typer.Option(help="template.json of another discovery to compare with; may be given several times."),
    ] = None,
) -> None:
    """Find the reasoning template: Generate-Validate-Mine. Writes template.json, its evidence and report.html.

    Part of a run only where the recipe has reason.template = "discovered". Who is
    asked, and about how many users, is in the recipe's teacher and discover
    sections; a run that was cut off asks nothing twice.
    """
    folder = _run_to("discover", recipe, data, work, also=also or ())
    console.print(f"[green]✓[/] {escape(str(folder / 'report.html'))}", soft_wrap=True)


@app.command()
def distill(
    recipe: RecipeArgument,
    data: DataOption,
    work: WorkOption = Path("out"),
    compare: Annotated[
        bool, typer.Option("--compare", help="Also measure teacher and students as recommenders, without a backbone.")
    ] = False,
) -> None:
    """Have a teacher write chains under the template, and fine-tune a student on them; writes report.html.

    Part of a run when reason.writer is "student".
    """
    if not compare:
        _run_to("distill", recipe, data, work)
        return
    chosen = load_recipe(recipe)
    from offline.run import run_compare

    run_compare(work, data, chosen)


@app.command()
def reason(
    recipe: RecipeArgument,
    data: DataOption,
    work: WorkOption = Path("out"),
    engine: Annotated[EngineName, typer.Option(help="Where to write and encode: here, or on a Ray cluster.")] = "local",
    workers: Annotated[
        int, typer.Option(min=0, help="Of --engine ray.", show_default="one per GPU, or per CPU core without any")
    ] = 0,
    no_distill: Annotated[bool, typer.Option("--no-distill", help="By the student's model as it comes.")] = False,
) -> None:
    """Stage 3: write a reasoning chain per user and split, embed its steps into H.

    Chains and vectors that an earlier run made of the same histories are taken
    over. With --engine ray the work goes to the cluster that RAY_ADDRESS names,
    or to all cores of this machine (docs/reason.md).
    """
    if workers and engine != "ray":
        raise StageError("--workers are those of a cluster: say --engine ray besides, or leave them out")
    chosen = load_recipe(recipe)
    from offline.run import run

    if no_distill:
        chosen = chosen.model_copy(update={"reason": chosen.reason.model_copy(update={"writer": "undistilled"})})
    if engine == "ray":
        from offline.reason.cluster import Ray

        run(work, data, chosen, "reason", engine=Ray(workers))
    else:
        run(work, data, chosen, "reason")


@app.command()
def train(
    recipe: RecipeArgument, data: DataOption, work: WorkOption = Path("out"), processes: ProcessesOption = 1
) -> None:
    """Stage 4: train the recipe's models: backbones alone, and with order-preserving fusion."""
    _run_to("train", recipe, data, work, processes=processes)


@app.command()
def evaluate(recipe: RecipeArgument, data: DataOption, work: WorkOption = Path("out"), keep: KeepOption = None) -> None:
    """Stage 5: Recall and NDCG on the test split, beside popularity and kNN; writes report.html.

    Each model is measured once, whatever it is compared with: recipes that share
    a work folder share what is trained and measured.
    """
    _keep(_run_to("evaluate", recipe, data, work), keep)


@app.command()
def export(recipe: RecipeArgument, data: DataOption, work: WorkOption = Path("out")) -> None:
    """Stage 6: fuse each model into one ONNX graph and put the release together."""
    _run_to("export", recipe, data, work)


@app.command()
def publish(
    store: StoreOption,
    work: WorkOption = Path("out"),
    release: Annotated[str | None, typer.Option(help="Release id.", show_default="the one exported last")] = None,
) -> None:
    """Load a release's H into a user store and make it the live one.

    Cut off, the same command goes on from there. A release that is in the store
    already is made live at once.

    Example:
        scoter publish --work out --store redis://localhost:6379/0
    """
    _publish(named_release(work, release) if release else latest_release(work), store)


@app.command()
def baselines(
    recipe: RecipeArgument,
    data: DataOption,
    work: WorkOption = Path("out"),
    environment: Annotated[
        Path,
        typer.Option(
            help="Virtual environment for RecBole, which needs older packages than ours; made where it is not there.",
            envvar="SCOTER_BASELINES",
        ),
    ] = Path(".baselines"),
    keep: KeepOption = None,
) -> None:
    """Train RecBole's baselines on the same split and measure them by the same evaluator; see docs/baselines.md."""
    chosen = load_recipe(recipe)
    from offline.baselines.run import run_baselines

    folder = run_baselines(work, data, chosen, environment)
    console.print(f"[green]✓[/] {escape(str(folder / 'report.json'))}", soft_wrap=True)
    _keep(folder, keep)


results = typer.Typer(no_args_is_help=True, help="Keep the figures of runs, and write docs/results.md from them.")
app.add_typer(results, name="results")

DOCS = Path("docs/results")
DocsOption = Annotated[Path, typer.Option(help="Folder of kept runs; the page is written beside it.")]


@results.command("add")
def results_add(
    stage: Annotated[
        Path, typer.Argument(help="Folder of a finished stage, or a work folder that has a single evaluation.")
    ],
    name: Annotated[str, typer.Option(help="What to call the run.")],
    docs: DocsOption = DOCS,
) -> None:
    """Copy a run's figures, curves, recipe and ranks; no weights, nothing that says who a user is."""
    _keep(stage, name, docs)


def _keep(stage: Path, name: str | None, docs: Path = DOCS) -> None:
    if name is not None:
        from offline.results.runs import keep

        console.print(f"[green]✓[/] {escape(str(keep(stage, name, docs)))}", soft_wrap=True)


@results.command("write")
def results_write(docs: DocsOption = DOCS) -> None:
    """Write the page and its plots anew."""
    from offline.results.write import write_results

    console.print(f"[green]✓[/] {escape(str(write_results(docs)))}", soft_wrap=True)


triton = typer.Typer(
    no_args_is_help=True,
    help="""Deploy releases to Triton Inference Server.

    [bold]add[/] the new release, point the services at it, and [bold]remove[/]
    the old one: both are loaded meanwhile, under names of their own.
    """,
)
app.add_typer(triton, name="triton")

RepositoryOption = Annotated[Path, typer.Option(help="The deployment repository: what Triton's --model-repository is.")]
UrlOption = Annotated[
    str | None, typer.Option(help="Triton's gRPC address, host:port.", show_default="no server is told")
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Speak TLS to it.")]
CaOption = Annotated[Path | None, typer.Option(help="PEM file of its authority.", show_default=False)]
CertificateOption = Annotated[Path | None, typer.Option(help="PEM file of our own certificate.", show_default=False)]
KeyOption = Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.", show_default=False)]


@triton.command("add")
def triton_add(
    repository: RepositoryOption,
    release: Annotated[
        Path | None,
        typer.Argument(help="A release's folder, as `scoter export` made it.", show_default="the one exported last"),
    ] = None,
    work: WorkOption = Path("out"),
    profile: Annotated[Profile, typer.Option(help="The hardware it is for.")] = Profile.cpu,
    backend: Annotated[
        Backend, typer.Option(help="onnxruntime as in NVIDIA's image, or python for a server without that.")
    ] = Backend.onnxruntime,
    instances: Annotated[
        int | None,
        typer.Option(min=1, help="Of each model: CPU cores, or copies on each GPU.", show_default="all cores; 1"),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait in Triton; 0 leaves its queue policy out.")
    ] = 0,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="Run the graph with TensorRT, in FP16.")] = False,
    url: UrlOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Lay a release's models out for Triton and, with --url, make the server load them and wait until it has.

    A second time it does nothing that is done. With --url the server has to run
    with --model-control-mode=explicit; one that polls its repository finds the
    models by itself, and --url is left out.
    """
    opened = Release.open(release or latest_release(work))
    count = instances or (usable_cores() if profile is Profile.cpu else 1)
    how = Deployment(profile, backend, count, max_queue, tensorrt)
    add(opened, repository, how, lambda line: console.print(f"  {escape(line)}", soft_wrap=True))
    if url is not None:
        asyncio.run(load(opened, _triton_settings(url, tls, ca, certificate, key)))
        console.print(f"[green]✓[/] {escape(url)} serves release [bold]{opened.id}[/]", soft_wrap=True)


@triton.command("remove")
def triton_remove(
    release: Annotated[str, typer.Argument(help="Release id.")],
    repository: RepositoryOption,
    url: UrlOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Take a release's models out of the repository, after --url's server has given them back."""
    names = [name for name in deployed(repository) if name.endswith(f"-{release}")]
    if not names:
        raise StageError(f"{repository} holds no models of release {release}: see `scoter triton list`")
    if url is not None:
        asyncio.run(unload(names, _triton_settings(url, tls, ca, certificate, key)))
    for name in remove(release, repository):
        console.print(f"[green]✓[/] removed {escape(name)}", soft_wrap=True)


@triton.command("list")
def triton_list(
    repository: RepositoryOption,
    url: UrlOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Name the models in the repository and, with --url, which of them the server has loaded."""
    names = deployed(repository)
    ready = None if url is None else asyncio.run(loaded(_triton_settings(url, tls, ca, certificate, key)))
    if not names:
        console.print(f"{escape(str(repository))} holds no models", soft_wrap=True)
    for name in names:
        state = "" if ready is None else "  loaded" if name in ready else "  not loaded"
        console.print(f"{escape(name)}{state}", soft_wrap=True)


def _triton_settings(
    url: str, tls: bool, ca: Path | None, certificate: Path | None, key: Path | None
) -> TritonSettings:
    try:
        return TritonSettings(url=url, tls=tls, ca=ca, certificate=certificate, key=key)
    except ValidationError as error:
        raise StageError(f"--url and its TLS files cannot be used: {listed(error)}") from error


@app.command()
def rollback(store: StoreOption) -> None:
    """Make the release live again that was live before; once more goes one further back.

    Needs no release folder: its records are still in the store, or this says that
    they are not.
    """
    from offline.shelf import rollback as roll_back

    _holds_records(store)
    console.print(f"[green]✓[/] live again: [bold]{_with_store(store, roll_back)}[/]")


@app.command()
def gc(
    store: StoreOption,
    keep: Annotated[int, typer.Option(min=1, help="Releases to keep, the most recent ones.")] = 3,
    pin: Annotated[
        list[str] | None, typer.Option(help="A release that some service is pinned to; may be given several times.")
    ] = None,
) -> None:
    """Remove the H and steps of releases that are neither live, nor pinned, nor among the most recent.

    Histories stay. The store is not scanned; cut off, the same command goes on
    from there. Not while a release is being published that is not among the ones
    to keep.
    """
    from offline.collect import collect

    _holds_records(store)
    gone = _with_store(store, lambda opened: collect(opened, keep, frozenset(pin or ())))
    for release in gone:
        console.print(f"[green]✓[/] removed [bold]{release.release_id}[/]: {release.users:,} users")
    if not gone:
        console.print("[green]✓[/] nothing to remove")


@app.command()
def abtest(
    exposures: Annotated[list[str], typer.Argument(help="JSONL files (.gz too), or a Redis URL.")],
    outcomes: Annotated[list[Path], typer.Option(help="JSONL or CSV file; repeat the option for more.")],
    users: Annotated[
        Path | None,
        typer.Option(help="JSONL or CSV with user_id and history_length.", show_default="the lengths that were logged"),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Only this one.", show_default="all")] = None,
    control: Annotated[
        str | None, typer.Option(help="Variation to compare with.", show_default="control, or the first by name")
    ] = None,
    window: Annotated[float, typer.Option(min=0, help="Hours after an answer that its outcomes count.")] = 24.0,
    groups: Annotated[int, typer.Option(min=1, max=10, help="Strata by history length; 1 for none.")] = 2,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    stream: Annotated[str, typer.Option(help="Key of the Redis Stream.")] = "scoter:exposures",
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots.", show_default="none")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare arms: lift in clicks, purchases and GMV with confidence intervals, from logged exposures and outcomes.

    Exposures are what the service logs (SCOTER_EXPOSURES__FILE, or __REDIS__URL).
    Outcomes come from elsewhere, one per row, with these columns or keys:

        event         click, purchase or negative ("not interested")
        ts            when: seconds since 1970, or ISO 8601
        item_id       of which item
        request_id    of the answer, or else
        user_id       whose latest answer that held the item gets the credit
        value         of a purchase
        event_id      if there is one: what comes again under it counts once

    The check for a sample ratio mismatch comes first: if it fails, nothing else
    means anything.

    Example:
        scoter abtest exposures.jsonl --outcomes orders.csv --html abtest.html
    """
    from offline.abtest.run import run_abtest

    run_abtest(
        console,
        exposures,
        outcomes,
        users=users,
        experiment=experiment,
        control=control,
        window=window * 3600,
        groups=groups,
        confidence=confidence,
        stream=stream,
        html=html,
        as_json=json,
    )


def _run_to(last: Last, recipe: str, data: Path, work: Path, *, also: Sequence[Path] = (), processes: int = 1) -> Path:
    chosen = load_recipe(recipe)
    from offline.run import run

    return run(work, data, chosen, last, also=also, processes=processes)


def _publish(release: Path, store: str) -> None:
    done = _with_store(store, lambda opened: publish_release(release, opened))
    if done.records == 0:
        console.print(f"[green]✓[/] live again: [bold]{done.release_id}[/], whose {done.users:,} users were there")
        return
    written = done.users - done.skipped
    console.print(
        f"[green]✓[/] published [bold]{done.release_id}[/]: {done.users:,} users"
        + (f" ({done.skipped:,} of them before)" if done.skipped else "")
        + f", {done.records:,} records, {done.bytes / written:,.0f} bytes a user, "
        f"{done.records / done.seconds:,.0f} records/s",
        soft_wrap=True,
    )


def _holds_records(store: str) -> None:
    """Refuse a folder without a store: opened, it would be an empty one, in which there is never anything to do."""
    settings = store_settings(store)
    if isinstance(settings, LmdbSettings) and not holds_store(settings.path):
        raise StageError(f"{settings.path} holds no store: name the folder that `scoter publish` wrote, or a Redis URL")


def _with_store(store: str, use: Callable[[Store], Awaitable[_T]]) -> _T:
    async def work() -> _T:
        settings = store_settings(store)
        if isinstance(settings, RedisSettings):  # nobody waits for an answer within milliseconds
            patience = {
                "connect_timeout_ms": max(settings.connect_timeout_ms, 2_000.0),
                "read_timeout_ms": settings.write_timeout_ms,
            }
            settings = settings.model_copy(update=patience)
        opened = open_store(settings)
        try:
            return await use(opened)
        finally:
            await opened.close()

    return asyncio.run(work())


def main() -> None:
    """Entry point: errors that a user can mend are one line, not a traceback."""
    try:
        app()
    except (OfflineError, ScoterError) as error:
        _complain(str(error))
        raise SystemExit(1) from None
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # typer's answer to Ctrl-C, which says nothing
            _complain("interrupted; the same command goes on from here")
        raise


def _complain(message: str) -> None:
    # A Text, as a message may quote "[dim]" from somebody's data; on one line, as libraries' own words may not be.
    line = " ".join(part.strip() for part in message.splitlines())
    _errors.print(Text.assemble(("scoter:", "red"), " ", line), soft_wrap=True)
