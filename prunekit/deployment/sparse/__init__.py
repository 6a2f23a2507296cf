"""Run a pruned network with sparse kernels on the CPU: sparse layers, the choice of a form by measurement, files.

``run_sparse`` returns a copy of a model whose layers run on torch's kernels for compressed sparse rows where these are
faster; ``save_csr`` and ``load_csr`` store and restore it. This package must not know training.
"""

from prunekit.deployment.sparse.conversion import LayerReport as LayerReport
from prunekit.deployment.sparse.conversion import run_sparse as run_sparse
from prunekit.deployment.sparse.csr_files import load_csr as load_csr
from prunekit.deployment.sparse.csr_files import save_csr as save_csr
from prunekit.deployment.sparse.form_choice import FormTiming as FormTiming
from prunekit.deployment.sparse.sparse_layer import SparseLayer as SparseLayer
