import os
import subprocess
import sys

import pytest

from prunekit.cli import main
from prunekit.distributed.devices import pick_device
from prunekit.distributed.launcher import LaunchedRank, launched_rank
from prunekit.distributed.process_group import process_group
from prunekit.distributed.ranks import gather_numbers, gather_samples, own_rank, rank_count, text_from_first
from prunekit.errors import ConfigError


@pytest.fixture
def launch(monkeypatch):
    def go(rank, ranks, local_rank="0"):
        for name, value in (("RANK", rank), ("WORLD_SIZE", ranks), ("LOCAL_RANK", local_rank)):
            monkeypatch.setenv(name, value)

    return go


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_without_a_launcher_there_is_no_rank(monkeypatch, launch, name):
    launch("1", "2")
    monkeypatch.delenv(name)
    assert launched_rank() is None


def test_a_single_launched_process_joins_no_group(launch):
    launch("0", "1")
    assert launched_rank() is None
    with process_group("cpu"):
        assert (own_rank(), rank_count()) == (0, 1)
        assert gather_numbers([3, 4]) == [[3, 4]]
        assert text_from_first("alone") == "alone"
        values = object()
        assert gather_samples(values) is values


def test_the_rank_is_read_from_the_environment(launch):
    launch("5", "8", "1")
    assert launched_rank() == LaunchedRank(5, 8, 1)


@pytest.mark.parametrize(("rank", "ranks", "local"), [("2", "2", "0"), ("x", "2", "0"), ("0", "", "0"), ("0", "2", "")])
def test_an_invalid_environment_is_an_error_that_names_torchrun(launch, rank, ranks, local):
    launch(rank, ranks, local)
    with pytest.raises(ConfigError, match="torchrun"):
        launched_rank()


def test_several_processes_cannot_share_one_named_gpu(launch):
    launch("0", "2")
    with pytest.raises(ConfigError, match="gives each its own"):
        pick_device("cuda:1")


def test_a_failed_rendezvous_is_an_error_that_names_torchrun(launch, monkeypatch):
    launch("0", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.*torchrun"), process_group("cpu"):
        pass


@pytest.mark.parametrize("command", ["plan", "sweep", "list"])
def test_commands_for_one_process_refuse_a_launcher(launch, capsys, command):
    launch("0", "2")
    assert main([command]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_rank_says_all_it_has_to_say_and_ends_with_its_code():
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for words, code in ((["list"], 0), (["show", "nothing"], 2)):
        command = [sys.executable, "-m", "prunekit", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        assert done.returncode == code
        assert ("correlation" in done.stdout) if code == 0 else ("error: " in done.stderr)
