"""The built-in plugins: like any other's, but always registered. A plugin's name is that of its module."""

PLUGINS = (
    "prunekit.builtin.layer_views",
    "prunekit.builtin.transformers_layers",
    "prunekit.builtin.magnitude",
    "prunekit.builtin.random_choice",
    "prunekit.builtin.correlation",
    "prunekit.builtin.movement",
    "prunekit.builtin.one_shot",
    "prunekit.builtin.layerwise",
    "prunekit.builtin.gradual",
    "prunekit.builtin.iterative",
    "prunekit.builtin.dynamic_sparse",
    "prunekit.builtin.ac_dc",
    "prunekit.builtin.dense_sparse_dense",
    "prunekit.builtin.progress:make_plugin",
    "prunekit.builtin.metric_log:MetricLog",
)
