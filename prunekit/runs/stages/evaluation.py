"""Evaluate the network at the end of a stage, with the task's own code.

It must not know stages or files.
"""

import json

import cattrs
import torch

from prunekit.contracts.evaluation import Evaluation
from prunekit.distributed.fsdp import is_fully_sharded
from prunekit.distributed.ranks import own_rank, rank_count, text_from_first
from prunekit.runs.active_run import ActiveRun
from prunekit.runs.interruption import interruptible_between_calls


def evaluate(run: ActiveRun) -> Evaluation:
    """Return the first rank's evaluation on all ranks, so the figures are those of a single process.

    Raises:
        KeyboardInterrupt: on all ranks, when the first one was requested to stop meanwhile.
    """
    model = run.prepared.model
    model.eval()
    if rank_count() == 1:
        with run.interruption.interruptible():
            return _evaluate(run)
    text = ""
    try:
        if is_fully_sharded(model):  # it computes only if all ranks do
            with interruptible_between_calls(run.interruption, model, run.prepared.network):
                text = json.dumps(cattrs.unstructure(_evaluate(run)))
        elif own_rank() == 0:
            with run.interruption.interruptible():
                text = json.dumps(cattrs.unstructure(_evaluate(run)))
    except KeyboardInterrupt:
        pass  # the other ranks wait for the text: an empty one passes the request on
    text = text_from_first(text)
    if not text:
        run.interruption.adopt_request()
        run.interruption.raise_if_requested()
    return cattrs.structure(json.loads(text), Evaluation)


def _evaluate(run: ActiveRun) -> Evaluation:
    with torch.inference_mode(), run.hardware.autocast():
        return run.prepared.task.evaluate(run.prepared.model, run.hardware.device)
