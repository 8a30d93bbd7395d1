"""Options for files of what was measured: refused before minutes are spent on what could not be written then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure


def _figures_file(file: Path | None) -> Path | None:
    """The file of an option, in a folder that is there. Raises BadParameter."""
    if file is not None and (not file.parent.is_dir() or file.is_dir()):
        raise typer.BadParameter(f"{file} cannot be written: name a file in a folder that is there")
    return file


def _picture_file(file: Path | None) -> Path | None:
    """The same for a picture, whose name says how it is drawn. Raises BadParameter."""
    if file is not None and file.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        raise typer.BadParameter(f"{file}: the name of a picture ends in .png, .svg or .pdf")
    return _figures_file(file)


FiguresFile = Annotated[Path | None, typer.Option("--json", help="File for all figures.", callback=_figures_file)]
PictureFile = Annotated[
    Path | None, typer.Option(help="File for the curves (.png, .svg, .pdf).", callback=_picture_file)
]
