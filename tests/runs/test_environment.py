import hashlib
import json
from importlib import metadata

import torch

from prunekit.runs.environment import environment


def test_the_environment_names_what_decides_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    task = tmp_path / "task.py"
    task.write_text("pass")
    facts = environment(3, "cpu", (f"{task}:Mine", "layerwise"))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["seed"], facts["hardware"], facts["ranks"]) == (3, "cpu", 1)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["plugins"]["prunekit-images"] == metadata.version("prunekit-images")
    assert facts["files"] == {str(task): hashlib.sha256(b"pass").hexdigest()}
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"
    assert "hush" not in json.dumps(facts)
