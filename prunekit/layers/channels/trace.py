"""Run a copy of a network once on samples and trace where its channels flow."""

from contextlib import nullcontext

import torch
from torch import nn

from prunekit.distributed.torch_internals import may_compile
from prunekit.layers.channels.flow import Flow
from prunekit.layers.channels.rules import make_rules
from prunekit.layers.channels.tracer import ChannelTracer
from prunekit.layers.samples import Samples
from prunekit.layers.view import ViewOf
from prunekit.masks.reparametrized import copy_of


def watch_copy(network: nn.Module, samples: Samples, view_of: ViewOf, *, trusting: bool) -> tuple[nn.Module, Flow]:
    """Return a copy of a network, in evaluation mode, and where its channels flow; see ``watching``."""
    copied = copy_of(network).eval()
    watch = ChannelTracer(copied, view_of, make_rules(), trusting=trusting)
    # A compiled network would be compiled with the watching in it. Nothing is compiled before dynamo is imported, which
    # takes seconds.
    with torch.compiler.set_stance("force_eager") if may_compile() else nullcontext(), watch.hooks():
        with watch:
            outputs = samples.call(copied)
        return copied, watch.finish(outputs)
