import io
import itertools

import attrs
import pytest
import torch
from torch import nn

from prunekit.contracts.export_format import Encoded, ExportFormat
from prunekit.plugins.manager import make_manager
from prunekit.testing import check_export_format


def encode(pruned):
    file = io.BytesIO()
    torch.save(dict(pruned.network.state_dict()), file)
    return Encoded(file.getvalue())


def reopen(path, pruned):
    return pruned.runner(torch.load(path, weights_only=True))


GOOD = ExportFormat("good", "A state dict.", encode, reopen, 1e-6, "torch.load({path})")
BUILT_IN = {item.name: item for item, _ in make_manager(third_party=False).results("prunekit_export_formats")}


def test_a_format_that_keeps_its_contract_passes():
    check_export_format(GOOD)
    check_export_format(attrs.evolve(GOOD, form=lambda pruned: nn.Sequential(pruned.network)))


@pytest.mark.parametrize("name", ["dense", "sparse", "csr", "shrunk"])
def test_built_in_formats_pass(name):
    check_export_format(BUILT_IN[name])


def refuse(*_):
    raise OSError("no space left")


numbers = itertools.count()


def scaled(pruned):
    network = nn.Sequential(pruned.network)
    network.register_forward_hook(lambda _module, _inputs, outputs: outputs * 1.01)
    return network


def flattened(path, pruned):
    run = reopen(path, pruned)
    return lambda samples: tuple(output.flatten() for output in run(samples))


def without_batch_of_one(path, pruned):
    run = reopen(path, pruned)

    def checked(samples):
        assert samples.count > 1
        return run(samples)

    return checked


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "two words"}, "the format's name is 'two words', expected one word"),
        ({"summary": "two\nlines"}, "summary of format 'good' is 'two\\nlines', expected one line"),
        ({"tolerance": float("nan")}, "tolerance of format 'good' is nan, expected a number of at least 0"),
        ({"load": "torch.load('x')"}, "expected {path} in it"),
        ({"load": "{'file': {path}}"}, "which has other braces than {path}; double them"),
        ({"encode": refuse}, "encode of format 'good' failed: OSError: no space left"),
        ({"encode": lambda pruned: encode(pruned).data}, "returns bytes, expected Encoded"),
        ({"encode": lambda _: Encoded("text")}, "encodes str, expected bytes"),
        ({"encode": lambda _: Encoded(b"")}, "encodes an empty file"),
        ({"encode": lambda pruned: Encoded(encode(pruned).data, ("a\nb",))}, "a note of format 'good' has more than"),
        ({"encode": lambda _: Encoded(b"%d" % next(numbers))}, "encodes other bytes the second time"),
        ({"reopen": refuse}, "reopen of format 'good' failed: OSError: no space left"),
        ({"reopen": lambda _, pruned: pruned.outputs}, "accepts an empty file, so it does not read the file"),
        ({"reopen": flattened}, "the reopened network of format 'good' returns outputs of shapes [(128,)]"),
        ({"reopen": without_batch_of_one}, "the reopened network of format 'good' failed on 1 samples"),
        ({"form": refuse}, "form of format 'good' failed: OSError"),
        ({"form": lambda pruned: pruned.network}, "form of format 'good' returns the exported network itself"),
        ({"form": scaled}, "the form of format 'good' has an output that differs by"),
    ],
)
def test_a_format_that_breaks_its_contract_fails_the_check(changes, sentence):
    with pytest.raises(AssertionError) as caught:
        check_export_format(attrs.evolve(GOOD, **changes))
    assert sentence in str(caught.value)


def test_a_format_that_changes_the_network_fails_the_check():
    def spoiling(pruned):
        pruned.network.hidden.bias.add_(1.0)
        return nn.Sequential(pruned.network)

    with pytest.raises(AssertionError, match=r"format 'good' changes the network that it exports: hidden\.bias"):
        check_export_format(attrs.evolve(GOOD, form=spoiling))
