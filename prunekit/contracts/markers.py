"""The two pluggy markers. Imports nothing else, so that a plugin module loads without torch."""

import pluggy

hookspec = pluggy.HookspecMarker("prunekit")
hookimpl = pluggy.HookimplMarker("prunekit")
