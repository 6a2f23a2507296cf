import pytest

from prunekit.errors import CheckpointError
from prunekit.runs.folder import RunFolder, write_json
from prunekit.runs.opening import check_same_stages, read_stages


def test_other_stages_are_refused_but_a_missing_plan_does_not_prevent_a_resumption(tmp_path):
    folder = RunFolder(tmp_path)
    check_same_stages(folder, read_stages(folder), {"stages": ()})
    write_json(folder.plan, "plan", {"stages": ()})
    check_same_stages(folder, read_stages(folder), {"stages": ()})
    with pytest.raises(CheckpointError, match="different stages"):
        check_same_stages(folder, read_stages(folder), {"stages": (1,)})
