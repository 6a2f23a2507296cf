"""Removing what is gone: a pruned network becomes a smaller one of the same classes, with the same outputs.

``shrink`` does it; ``files`` keeps the result. This package must not know criteria, schedules, tasks or training.
"""

from prunekit.shrinking.coupling import coupled_masks as coupled_masks
from prunekit.shrinking.coupling import coupled_units as coupled_units
from prunekit.shrinking.coupling import whole_units as whole_units
from prunekit.shrinking.files import load_shrunk as load_shrunk
from prunekit.shrinking.files import save_shrunk as save_shrunk
from prunekit.shrinking.report import LayerSizes as LayerSizes
from prunekit.shrinking.report import Report as Report
from prunekit.shrinking.shrink import Shrunk as Shrunk
from prunekit.shrinking.shrink import shrink as shrink
