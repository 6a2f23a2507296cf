"""The built-in plugins: like any other's, but always registered. A plugin's name is that of its module."""

PLUGINS = (
    "prunekit.builtin.layer_views",
    "prunekit.builtin.transformers_layers",
    "prunekit.builtin.magnitude",
    "prunekit.builtin.random_choice",
    "prunekit.builtin.correlation",
    "prunekit.builtin.wanda",
    "prunekit.builtin.lamp",
    "prunekit.builtin.snip",
    "prunekit.builtin.taylor",
    "prunekit.builtin.fisher",
    "prunekit.builtin.obs",
    "prunekit.builtin.sparsegpt",
    "prunekit.builtin.grasp",
    "prunekit.builtin.synflow",
    "prunekit.builtin.one_shot",
    "prunekit.builtin.layerwise",
    "prunekit.builtin.progress:make_plugin",
    "prunekit.builtin.metric_log:MetricLog",
)
