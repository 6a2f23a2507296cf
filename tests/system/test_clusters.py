"""What the page on clusters says can be done: its scripts are shell, their options are there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from prunekit.cli.run import run
from prunekit.contracts.training import Training

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "clusters.md"
SCRIPTS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_page_has_scripts_for_one_machine_for_several_and_for_slurm():
    assert ["#SBATCH" in script for script in SCRIPTS] == [False, False, True]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_shell(script):
    # The scripts are those of our own page.
    checked = subprocess.run(  # noqa: S603
        [shutil.which("bash"), "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_torchrun_and_of_the_run_is_there(script):
    launched, _, ours = script.replace("\\\n", " ").partition("-m prunekit run")
    command = launched[launched.rindex("torchrun ") :].splitlines()[0]
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z-]+", command)) <= known
    runs = ours.splitlines()[0] + " ".join(re.findall(r"arguments=\((.*)\)", script))
    options = {name for parameter in run.params for name in parameter.opts}
    used = set(re.findall(r"(?<=\s)--?[a-z-]+", f" {runs}"))
    assert used
    assert used <= options
    for field in re.findall(r"-o training\.(\w+)=", runs):
        assert hasattr(Training(), field)
