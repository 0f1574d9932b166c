"""Files of tensors, written whole or not at all, and checked in every byte when they are read.

A file is in the safetensors format, and whatever reads that can read it. Its metadata say what it holds
("kind"), in which version of this layout, and with which digest: SHA-256 of the file itself, with zeros
where the digest stands. So no byte can change unnoticed, be it one that says what others mean. A digest
is no signature: whoever changes a file on purpose can write a new one, so what is read must still be
checked for what it means, as `gatv2.graph.check_graph` does.
"""

import json
import os
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
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
_HEADER_BYTES = 1 << 20  # a longer header is none of ours, and is not read

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
        ValueError: `metadata` has no "kind", or has a name that is added to it, or names and metadata
            take more than a megabyte.

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
            n_bytes = int.from_bytes(file.read(8), "little")
            if n_bytes > _HEADER_BYTES:
                raise ValueError(
                    f"names and metadata of the tensors must take at most {_HEADER_BYTES} bytes; got "
                    f"{n_bytes}: save fewer tensors in a file"
                )
            digest = _digest(file, placeholder.encode())
            file.seek(_place(file, placeholder.encode()))
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())  # or the name could reach the disk before the data
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(
    path: PathLike, kind: str, names: Collection[str] | None = None, *, mmap: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` has written, after checking that nothing of it has changed.

    The tensors are mapped: pages of the file are read when they are needed, and given up when memory is.
    What is written to a tensor stays in this process. The check reads the file once. Whoever cuts the
    file or writes to it while it is mapped ends the process, or changes the tensors; to replace it by
    another file of its name, as `save_tensors` does, is safe.

    Args:
        path: the file.
        kind: the "kind" that it must be of.
        names: those that its tensors may have, for which the header is looked through before anything
            else is read; None for any.
        mmap: False reads the tensors into memory, where what becomes of the file does not matter.

    Returns:
        The tensors, on the CPU, and the metadata that were saved with them.

    Raises:
        ImportError: safetensors is missing.
        OSError: there is no such file, or it can't be read.
        ValueError: the file is not one that `save_tensors` wrote, is truncated or changed, or is of
            another kind or version, or has other names.
    """
    safetensors = _required("safetensors")
    with _as_value_error(path, safetensors.SafetensorError):
        _check_is_file(path)
        with open(path, "rb") as file:
            _check_header(file, kind, names)
            return _load(path, file, kind, mmap)


def _load(
    path: PathLike, file: IO[bytes], kind: str, mmap: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _required("safetensors").safe_open(path, framework="pt") as opened:
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
        _check_kind(metadata.get("kind"), kind)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if tensor.data_ptr() % tensor.itemsize:
                raise _RefusalError("aligned tensors", f"{name!r} at an odd address")
        if not mmap:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return tensors, metadata


def _check_is_file(path: PathLike) -> None:
    """Raise for a pipe or a device, which may never end, and may never begin."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise _RefusalError("a regular file", "a pipe, a socket or a device", _ASK)


def _check_header(file: IO[bytes], kind: str, names: Collection[str] | None) -> None:
    """Raise unless the header is one that may be read on: what it costs to read is bounded by that."""
    n_bytes = int.from_bytes(file.read(8), "little")
    if n_bytes > _HEADER_BYTES:
        raise _RefusalError(f"a header of at most {_HEADER_BYTES} bytes", f"one of {n_bytes}")
    try:
        header = json.loads(file.read(n_bytes))
    except (ValueError, RecursionError) as error:
        raise _RefusalError("a header in JSON", str(error)) from error
    if not isinstance(header, dict):
        raise _RefusalError("a header of names", "none")
    metadata = header.pop("__metadata__", None)
    if isinstance(metadata, dict):
        _check_kind(metadata.get("kind"), kind)
    others = [] if names is None else sorted(header.keys() - set(names))
    if others:
        expected = f"tensors of the names {sorted(names or ())}"
        raise _RefusalError(expected, f"{len(others)} others, as {others[0]!r}", _ASK)


def _check_kind(found: object, kind: str) -> None:
    if found != kind:
        raise _RefusalError(f"the kind {kind!r}", repr(found), _ASK)


def decimal(text: str) -> int:
    """The number that `str` writes as `text`, in digits from 0 to 9 and nothing else.

    Raises:
        ValueError: `text` is another notation, which `int` may read.

    Example:
        >>> decimal("-12")
        -12
        >>> decimal("1_0")
        Traceback (most recent call last):
        ...
        ValueError: a number must be written in digits from 0 to 9; got '1_0'
    """
    if str(number := int(text)) != text:
        raise ValueError(f"a number must be written in digits from 0 to 9; got {text!r}")
    return number


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
