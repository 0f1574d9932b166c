"""Files of tensors, written whole or not at all, and checked in every byte when they are read.

A file is in the safetensors format, and whatever reads that can read it. Its metadata say what it holds
("kind"), in which version of this layout, and with which digest: SHA-256 of the file itself, with zeros
where the digest stands. So no byte can change unnoticed, be it one that says what others mean. A digest
is no signature: whoever changes a file on purpose can write a new one, so what is read must still be
checked for what it means, as `gatv2.graph.check_graph` does.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import IO

from torch import Tensor

from gatv2.optional import require

VERSION = "1"
_ZEROS = b"0" * 64  # what is digested where the digest stands
_ADDED = ("version", "digest")
_CHUNK_BYTES = 1 << 22

PathLike = str | os.PathLike[str]


def save_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors to a file: all of them or, if it is stopped on the way, none.

    Args:
        path: the file. One of that name is replaced; who has the old one mapped keeps it as it was.
        tensors: any number of them, on any device.
        metadata: what else belongs to them, with a "kind": what they are together.

    Raises:
        ImportError: safetensors is missing.
        ValueError: `metadata` has no "kind", or has a name that is added to it.

    Example:
        >>> import torch
        >>> from tempfile import mkdtemp
        >>> path = mkdtemp() + "/counts.safetensors"
        >>> save_tensors(path, {"count": torch.arange(3)}, {"kind": "counts"})
        >>> load_tensors(path, "counts")
        ({'count': tensor([0, 1, 2])}, {'kind': 'counts'})
    """
    if "kind" not in metadata or any(name in metadata for name in _ADDED):
        raise ValueError(
            f'`metadata` must have a "kind", and none of {_ADDED}, which are added; '
            f"got {sorted(metadata)}"
        )
    safetensors = _required("safetensors.torch")
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        placeholder = secrets.token_hex(len(_ZEROS) // 2)  # what no other text can be
        header = {**metadata, "version": VERSION, "digest": placeholder}
        safetensors.save_file(_unshared(tensors), temporary, header)
        temporary.chmod(mode)  # safetensors makes a file that nobody else can read
        with temporary.open("r+b") as file:
            digest = _digest(file, placeholder.encode())
            file.seek(_place(file, placeholder.encode()))
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())  # or the name could reach the disk before the data
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: PathLike, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` has written, after checking that nothing of it has changed.

    The tensors are mapped: pages of the file are read when they are needed, and given up when memory is.
    What is written to a tensor stays in this process. The check reads the file once.

    Args:
        path: the file.
        kind: the "kind" that it must be of.

    Returns:
        The tensors, on the CPU, and the metadata that were saved with them.

    Raises:
        ImportError: safetensors is missing.
        OSError: there is no such file, or it can't be read.
        ValueError: the file is not one that `save_tensors` wrote, is truncated or changed, or is of
            another kind or version.
    """
    safetensors = _required("safetensors")
    with (
        open(path, "rb") as file,
        _as_value_error(path, safetensors.SafetensorError),
        safetensors.safe_open(path, framework="pt") as opened,
    ):
        metadata: dict[str, str] = opened.metadata() or {}
        digest = metadata.pop("digest", "").encode()
        version = metadata.pop("version", None)
        if version != VERSION or len(digest) != len(_ZEROS):
            raise _RefusalError(f"a file of gatv2, version {VERSION}", f"version {version}", _ASK)
        found = _digest(file, digest)
        if found != digest:
            raise _RefusalError(
                f"the digest {digest.decode()}", f"{found.decode()}: it has changed"
            )
        if metadata.get("kind") != kind:
            raise _RefusalError(f"the kind {kind!r}", f"{metadata.get('kind')!r}", _ASK)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if tensor.data_ptr() % tensor.itemsize:
                raise _RefusalError("aligned tensors", f"{name!r} at an odd address")
    return tensors, metadata


class _RefusalError(Exception):
    """What a file was expected to have, what it has, and what to do."""


_REPLACE = "save it again, or fetch a whole copy"
_ASK = "load it with what saved it"


@contextmanager
def _as_value_error(path: PathLike, error_type: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (_RefusalError, error_type) as error:
        is_refusal = isinstance(error, _RefusalError)
        expected, got, *to_do = error.args if is_refusal else ("whole tensors", str(error))
        raise ValueError(
            f"{os.fspath(path)!r} can't be loaded: expected {expected}; got {got}: "
            f"{to_do[0] if to_do else _REPLACE}"
        ) from error


def _digest(file: IO[bytes], digest: bytes) -> bytes:
    """What the digest must be, of a file in which `digest` stands."""
    place = _place(file, digest)
    file.seek(0)
    result = sha256(file.read(place))
    result.update(_ZEROS)
    file.seek(len(digest), os.SEEK_CUR)
    while chunk := file.read(_CHUNK_BYTES):
        result.update(chunk)
    return result.hexdigest().encode()


def _place(file: IO[bytes], digest: bytes) -> int:
    """Where the digest stands; the header is its length in 8 bytes, and text."""
    file.seek(0)
    length = file.read(8)
    place = file.read(int.from_bytes(length, "little")).find(digest)
    if place < 0:
        raise _RefusalError("its digest in the header", "none there")
    return 8 + place


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: contiguous, and none in the memory of another."""
    result: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        memory = dense.untyped_storage().data_ptr()
        result[name] = dense.clone() if memory in seen else dense
        seen.add(memory)
    return result


def _required(name: str) -> ModuleType:
    return require(name, extra="files", needed_for="saving and loading")
