"""What do several commands of a site ask for in the same words?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Site = Annotated[Path, typer.Option("--site", metavar="DIR", help="The site folder.", show_default="here")]
HERE = Path()
Folder = Annotated[Path, typer.Argument(metavar="[DIR]", show_default=False)]
DIR = "DIR: the site folder. None: the present one."  # in the epilog, as the help of arguments is dropped
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
