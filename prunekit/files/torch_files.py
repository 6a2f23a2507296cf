"""Read state dicts from untrusted files of ``torch.save``.

Files are loaded with ``torch.load(weights_only=True)`` only, and only after the archive was inspected without running
anything in it: its members must be uncompressed and no larger than the file, and its pickle must be small and name only
tensors, their storages and dicts. Storages are memory-mapped. This module must not know what the tensors mean.
"""

import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import PrunekitError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # also the first byte of the length of some safetensors headers, which begin with { at byte 8
_PICKLE_LIMIT = 2 * 2**20  # about 14,000 tensors; unpickled, a hostile pickle takes 70 times its size
_REBUILDERS = {"_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_tensor"}
_NESTED = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save the weights


def is_torch_file(path: Path) -> bool:
    """Return whether a file begins like one written by ``torch.save``; safetensors files do not."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, ValueError):
        return False  # opening it will raise the proper error
    return start.startswith(_ZIP) or (start.startswith(_PICKLE) and not start.endswith(b"{"))


def load_state_dict(path: Path, refusal: type[PrunekitError]) -> dict[str, Tensor]:
    """Read the tensors of a state dict that ``torch.save`` wrote, and skip its other values.

    If the file holds a dict under "state_dict", "model_state_dict" or "model", as many training scripts save it, that
    dict is read instead.

    Raises:
        PrunekitError: of the type ``refusal``, naming the file, if it is anything but a state dict.
    """
    try:
        _check_archive(path, refusal)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except refusal:
        raise
    except Exception as error:  # torch.load raises errors of any type for damaged files
        reason = " ".join(str(error).split())[:200]
        raise refusal(f"{path}: cannot be read with torch.load(weights_only=True): {reason}") from error
    tensors = _tensors(loaded)
    if tensors is None:
        raise refusal(f"{path}: holds a {type(loaded).__name__}, expected a state dict (name -> tensor)")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise refusal(f"{path}: {name} is {tensor.layout} on {tensor.device}, expected a dense tensor")
        if tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), 1):
            raise refusal(f"{path}: {name} claims {tensor.numel()} elements, more than the file holds of it")
    return tensors


def _tensors(loaded: Any) -> dict[str, Tensor] | None:
    if not isinstance(loaded, Mapping):
        return None
    for key in _NESTED:
        if isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    return {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _check_archive(path: Path, refusal: type[PrunekitError]) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != _ZIP:
            raise refusal(
                f"{path}: a pickle of an old torch.save, which is never read; save it again with torch >= 1.6"
            )
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise refusal(f"{path}: has compressed members, which torch.save does not write")
        if sum(member.file_size for member in members) > size:
            raise refusal(f"{path}: its members claim more bytes than the {size} of the file")
        pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > _PICKLE_LIMIT:
            raise refusal(f"{path}: expected one data.pkl of at most {_PICKLE_LIMIT} bytes; use safetensors instead")
        _check_pickle(archive.read(pickles[0]), path, refusal)


def _check_pickle(data: bytes, path: Path, refusal: type[PrunekitError]) -> None:
    """Refuse a pickle that names anything but tensors, storages and dicts, without running it."""
    for opcode, argument, _ in pickletools.genops(data):
        # torch.save writes protocol 2, in which only GLOBAL names things.
        if opcode.name in {"GLOBAL", "STACK_GLOBAL", "INST"}:
            module, _, name = str(argument).partition(" ")
            if opcode.name != "GLOBAL" or not _is_harmless(module, name):
                raise refusal(
                    f"{path}: its pickle names {module}.{name}, expected tensors and dicts alone; "
                    "save model.state_dict() instead"
                )


def _is_harmless(module: str, name: str) -> bool:
    if module == "torch":
        return name == "Size" or name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
    allowed = {"torch._utils": _REBUILDERS, "collections": {"OrderedDict"}, "torch.storage": {"UntypedStorage"}}
    return name in allowed.get(module, ())
