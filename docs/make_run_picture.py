"""Draw docs/start/run.svg: the output of the main job, as a terminal of 112 columns shows it.

python docs/make_run_picture.py     # takes as long as the run: one to two minutes
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "start" / "run.svg"
ARGUMENTS = ["run", "--criterion", "correlation"]


def draw() -> str:
    """Run the main job in an empty folder and return its standard output as SVG."""
    command = shutil.which("prunekit", path=str(Path(sys.executable).parent))
    assert command is not None
    environment = {**os.environ, "COLUMNS": "112", "FORCE_COLOR": "1"}
    with tempfile.TemporaryDirectory() as folder:
        # The command is our own.
        done = subprocess.run(  # noqa: S603
            [command, *ARGUMENTS], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=112, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(done.stdout.rstrip()))
        return console.export_svg(title=" ".join(["prunekit", *ARGUMENTS]), unique_id="run")


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
