"""Image classification for prunekit: the task "images"."""
