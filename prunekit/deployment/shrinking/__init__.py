"""Shrinking: a pruned network becomes a smaller one of the same classes, with the same outputs.

``shrink`` does it; ``files`` saves and loads the result. This package must not know criteria, schedules, tasks or
training.
"""

from prunekit.deployment.shrinking.coupled_masks import coupled_masks as coupled_masks
from prunekit.deployment.shrinking.coupled_masks import coupled_units as coupled_units
from prunekit.deployment.shrinking.coupled_masks import whole_units as whole_units
from prunekit.deployment.shrinking.files import load_shrunk as load_shrunk
from prunekit.deployment.shrinking.files import save_shrunk as save_shrunk
from prunekit.deployment.shrinking.report import LayerSizes as LayerSizes
from prunekit.deployment.shrinking.report import Report as Report
from prunekit.deployment.shrinking.shrink import Shrunk as Shrunk
from prunekit.deployment.shrinking.shrink import shrink as shrink
