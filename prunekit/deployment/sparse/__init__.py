"""Running a pruned network sparse on the CPU: layers, the choice by measurement, files.

``run_sparse`` gives a copy of a model in which the layers that gain by it run on torch's own kernels for compressed
sparse rows; ``save_csr`` and ``load_csr`` keep it in a file. Needs layers and masks; must not know training.
"""

from prunekit.deployment.sparse.conversion import LayerReport as LayerReport
from prunekit.deployment.sparse.conversion import run_sparse as run_sparse
from prunekit.deployment.sparse.csr_files import load_csr as load_csr
from prunekit.deployment.sparse.csr_files import save_csr as save_csr
from prunekit.deployment.sparse.form_choice import Timing as Timing
from prunekit.deployment.sparse.sparse_layer import SparseLayer as SparseLayer
