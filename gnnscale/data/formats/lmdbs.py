"""Published LMDB files: records of the Open Catalyst Project, and rows of ASE. The only file that imports lmdb.

OCP's records are pickles, which can execute anything. They are read here by an unpickler that knows tensors, arrays
and the containers of PyTorch Geometric, all as NumPy and plain dicts, and refuses whatever else a record names.

LMDB's pages have no checksum, and LMDB trusts them: a file with flipped bits in just these can end the process with
SIGBUS (1 of 300 files with 3 flips each). Truncation, and what is broken inside a record, is told.
"""

from __future__ import annotations

import io
import pickle
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import lmdb
import numpy as np
import orjson

from gnnscale.data.formats.pieces import Place

Record = dict[str, Any]


@contextmanager
def opened(place: Place) -> Iterator[lmdb.Transaction]:
    """LMDB maps the file into memory; to read beyond the end of a truncated one would kill the process."""
    place.where = "its beginning"
    try:
        environment = lmdb.open(str(place.path), subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0)
    except lmdb.Error as error:
        raise place.fault(f"not an LMDB file, or truncated ({error})") from None
    with environment:
        pages, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
        length = place.path.stat().st_size
        if length < pages * size:
            raise place.fault(f"truncated: {length} bytes of {pages * size}")
        try:
            with environment.begin(buffers=False) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise place.fault(f"unreadable ({error})") from error


# ----------------------------------------------------------------------------------------------------- OCP's pickles
def count_records(place: Place) -> int:
    with opened(place) as transaction:
        return _length(place, transaction)


def _length(place: Place, transaction: lmdb.Transaction) -> int:
    stored = transaction.get(b"length")
    place.where = "key length"
    count = transaction.stat()["entries"] if stored is None else unpickled(place, stored)
    if not isinstance(count, int):
        raise place.fault(f"a number was expected, not {type(count).__name__}")
    return count


def records(place: Place, span: tuple[int, int]) -> Iterator[tuple[int, Record]]:
    """(key, attributes) of the graphs of these keys; there are 0, 1, 2, ..."""
    with opened(place) as transaction:
        count = _length(place, transaction)
        for key in range(*span):
            place.where = f"key {key} of {count}"
            value = transaction.get(str(key).encode())
            if value is None:
                raise place.fault("missing")
            record = unpickled(place, value)
            if isinstance(record, Container):
                record = record.attributes()
            if not isinstance(record, dict):
                raise place.fault(f"a graph was expected, not {type(record).__name__}")
            yield key, record


def unpickled(place: Place, value: bytes) -> Any:
    try:
        return Restricted(io.BytesIO(value)).load()
    except Refused as refused:
        raise place.fault(
            f"the pickle asks for {refused}, which is no part of a graph; it could execute anything, and is not read"
        ) from None


class Refused(Exception):
    """What a pickle may not name."""


class Container:
    """In place of torch_geometric.data.Data and its storages: what they hold, as it was pickled."""

    def __init__(self, *_: object):
        self.state: dict = {}

    def __setstate__(self, state: dict) -> None:
        self.state = state

    def attributes(self) -> Record:
        """PyG 2 keeps them in _store._mapping; PyG 1 in the object itself."""
        store = self.state.get("_store")
        return store.state["_mapping"] if isinstance(store, Container) else self.state


class Storage(NamedTuple):
    """A tensor's memory, pickled as a stream of its own."""

    values: np.ndarray


STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


class Restricted(pickle.Unpickler):
    """Knows what a graph is made of."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return KNOWN[module, name]
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def persistent_load(self, key: Any) -> Any:
        raise Refused("a persistent object")


class Legacy(Restricted):
    """The streams that torch.save wrote before it wrote zip files, and still does inside a pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        raise Refused(f"{module}.{name}")

    def persistent_load(self, key: Any) -> Any:
        kind, dtype, _, _, length, *_ = key
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(length, int):
            raise Refused(f"a persistent object {kind!r}")
        return dtype, length


def storage(stream: bytes) -> Storage:
    """Magic number, protocol, sizes, description, keys: five pickles; then a count and the bytes."""
    file = io.BytesIO(stream)
    _, _, _, (dtype, length), _ = (Legacy(file).load() for _ in range(5))
    count = int.from_bytes(file.read(8), "little")
    content = file.read()
    if count != length or len(content) != length * dtype.itemsize:
        raise ValueError(f"a tensor of {length} numbers has {len(content)} bytes")
    return Storage(np.frombuffer(content, dtype))


def tensor(held: Storage, offset: int, size: tuple, stride: tuple, *_: object) -> np.ndarray:
    """As torch._utils._rebuild_tensor_v2, and inside its memory."""
    if not isinstance(held, Storage) or min([offset, *size, *stride], default=0) < 0 or len(size) != len(stride):
        raise ValueError(f"a tensor of size {size}, stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and last >= len(held.values):
        raise ValueError(f"a tensor of size {tuple(size)} in {len(held.values)} numbers")
    steps = [step * held.values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(held.values[offset:], size, steps, writeable=False).copy()


ARRAYS = "numpy.core.multiarray", "numpy._core.multiarray"
KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch.storage", "_load_from_bytes"): storage,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(module, "_reconstruct"): np._core.multiarray._reconstruct for module in ARRAYS},
    **{(module, "scalar"): np._core.multiarray.scalar for module in ARRAYS},
    **{("torch_geometric.data.data", name): Container for name in ("Data", "DataEdgeAttr", "DataTensorAttr")},
    **{("torch_geometric.data.storage", name): Container for name in ("BaseStorage", "GlobalStorage")},
}


# -------------------------------------------------------------------------------------------------------- ASE's rows
def count_rows(place: Place) -> int:
    with opened(place) as transaction:
        return len(_ids(place, transaction))


def _ids(place: Place, transaction: lmdb.Transaction) -> range | list[int]:
    place.where = "key nextid"
    following = decoded(transaction.get(b"nextid"))
    if not isinstance(following, int):
        raise place.fault("the number of rows is missing: no database of ASE")
    deleted = set(decoded(transaction.get(b"deleted_ids")) or [])
    return [key for key in range(1, following) if key not in deleted] if deleted else range(1, following)


def rows(place: Place, span: tuple[int, int]) -> Iterator[tuple[int, Record]]:
    """(id, row) of those rows of an .aselmdb file, in the order of ids; arrays are NumPy's."""
    with opened(place) as transaction:
        ids = _ids(place, transaction)
        for key in ids[slice(*span)]:
            place.where = f"row {key} of {ids[-1]}"
            value = transaction.get(str(key).encode())
            if value is None:
                raise place.fault("missing")
            row = decoded(value)
            if not isinstance(row, dict):
                raise place.fault("not a row of ASE")
            yield key, row


def decoded(value: bytes | None) -> Any:
    return None if value is None else plain(orjson.loads(zlib.decompress(value)))


def plain(value: Any) -> Any:
    """{"__ndarray__": [shape, type, numbers]} as arrays, at any depth."""
    if isinstance(value, dict):
        if value.keys() == {"__ndarray__"}:
            shape, kind, numbers = value["__ndarray__"]
            if np.dtype(kind).kind not in "biuf":
                raise ValueError(f"an array of type {kind}")
            return np.array(numbers, kind).reshape(shape)
        return {key: plain(each) for key, each in value.items()}
    return value
