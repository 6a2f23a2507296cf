"""The forms in which a pruned network can run, ready to be measured, and those in which it cannot, and why.

This module must not know time.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch
from torch import nn

from prunekit.benching.records import DENSE
from prunekit.errors import PrunekitError
from prunekit.mask_files import encode as encode_masks
from prunekit.pruned import Pruned
from prunekit.shrinking import shrink
from prunekit.sparse import LayerReport, run_sparse, save_csr
from prunekit.sparse_checkpoints import encode_weights
