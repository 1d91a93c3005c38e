"""Published LMDB files: records of the Open Catalyst Project, and rows of ASE. The only file that imports lmdb.

OCP's records are pickles, and a pickle can execute anything. The unpickler here knows only tensors, arrays and the
containers of PyTorch Geometric, which it returns as NumPy arrays and dicts; it refuses any other name in a record.

LMDB's pages have no checksum, and LMDB trusts them: flipped bits in a page can end the process with SIGBUS (seen for 1
of 300 files with 3 flips each). A truncated file and a broken record are reported.
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
from numpy._core import multiarray  # type: ignore[import-untyped] # what pickles of arrays name

from gnnscale.data.formats.raw_files import Location

RawRecord = dict[str, Any]


@contextmanager
def open_lmdb(location: Location) -> Iterator[lmdb.Transaction]:
    """Open an LMDB file, unless it is truncated: LMDB maps it, and reading beyond its end would kill the process."""
    location.where = "its beginning"
    try:
        environment = lmdb.open(str(location.path), subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0)
    except lmdb.Error as error:
        raise location.fault(f"not an LMDB file, or truncated ({error})") from None
    with environment:
        pages, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
        length = location.path.stat().st_size
        if length < pages * size:
            raise location.fault(f"truncated: {length} bytes of {pages * size}")
        try:
            with environment.begin(buffers=False) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise location.fault(f"unreadable ({error})") from error


# ----------------------------------------------------------------------------------------------------- OCP's pickles
def count_records(location: Location) -> int:
    with open_lmdb(location) as transaction:
        return _length(location, transaction)


def _length(location: Location, transaction: lmdb.Transaction) -> int:
    stored = transaction.get(b"length")
    location.where = "key length"
    count = transaction.stat()["entries"] if stored is None else unpickle(location, stored)
    if not isinstance(count, int):
        raise location.fault(f"a number was expected, not {type(count).__name__}")
    return count


def read_records(location: Location, span: tuple[int, int]) -> Iterator[tuple[int, RawRecord]]:
    """Yield (key, attributes) of the graphs with these keys; keys are 0, 1, 2, ..."""
    with open_lmdb(location) as transaction:
        count = _length(location, transaction)
        for key in range(*span):
            location.where = f"key {key} of {count}"
            value = transaction.get(str(key).encode())
            if value is None:
                raise location.fault("missing")
            record = unpickle(location, value)
            if isinstance(record, PickledGraph):
                record = record.attributes()
            if not isinstance(record, dict):
                raise location.fault(f"a graph was expected, not {type(record).__name__}")
            yield key, record


def unpickle(location: Location, value: bytes | memoryview) -> Any:
    try:
        return RestrictedUnpickler(io.BytesIO(value)).load()
    except ForbiddenName as name:
        raise location.fault(
            f"the pickle asks for {name}, which is no part of a graph; it could execute anything, and is not read"
        ) from None


class ForbiddenName(Exception):
    """A pickle names something that is no part of a graph."""


class PickledGraph:
    """The content of torch_geometric.data.Data or of one of its storages, as it was pickled."""

    def __init__(self, *_: object):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def attributes(self) -> RawRecord:
        """Return the attributes: PyG 2 keeps them in _store._mapping, PyG 1 in the object itself."""
        store = self.state.get("_store")
        return store.state["_mapping"] if isinstance(store, PickledGraph) else self.state


class TensorStorage(NamedTuple):
    """The memory of a tensor, which is pickled as a stream of its own."""

    values: np.ndarray


DTYPES = {
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


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that allows only what a graph is made of."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED_NAMES[module, name]
        except KeyError:
            raise ForbiddenName(f"{module}.{name}") from None

    def persistent_load(self, key: Any) -> Any:
        raise ForbiddenName("a persistent object")


class LegacyUnpickler(RestrictedUnpickler):
    """An unpickler of the streams that torch.save wrote before zip files, and still writes inside a pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        raise ForbiddenName(f"{module}.{name}")

    def persistent_load(self, key: Any) -> Any:
        kind, dtype, _, _, length, *_ = key
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(length, int):
            raise ForbiddenName(f"a persistent object {kind!r}")
        return dtype, length


def read_storage(stream: bytes) -> TensorStorage:
    """Read the memory of a tensor: magic number, protocol, sizes, description and keys, then a count and the bytes."""
    file = io.BytesIO(stream)
    _, _, _, (dtype, length), _ = (LegacyUnpickler(file).load() for _ in range(5))
    count = int.from_bytes(file.read(8), "little")
    content = file.read()
    if count != length or len(content) != length * dtype.itemsize:
        raise ValueError(f"a tensor of {length} numbers has {len(content)} bytes")
    return TensorStorage(np.frombuffer(content, dtype))


def rebuild_tensor(
    held: TensorStorage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> np.ndarray:
    """Rebuild a tensor as torch._utils._rebuild_tensor_v2 does, checking that it lies inside its memory."""
    if not isinstance(held, TensorStorage) or min([offset, *size, *stride], default=0) < 0 or len(size) != len(stride):
        raise ValueError(f"a tensor of size {size}, stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and last >= len(held.values):
        raise ValueError(f"a tensor of size {tuple(size)} in {len(held.values)} numbers")
    steps = [step * held.values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(held.values[offset:], size, steps, writeable=False).copy()


NUMPY_MODULES = "numpy.core.multiarray", "numpy._core.multiarray"
ALLOWED_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): read_storage,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(module, "_reconstruct"): multiarray._reconstruct for module in NUMPY_MODULES},
    **{(module, "scalar"): multiarray.scalar for module in NUMPY_MODULES},
    **{("torch_geometric.data.data", name): PickledGraph for name in ("Data", "DataEdgeAttr", "DataTensorAttr")},
    **{("torch_geometric.data.storage", name): PickledGraph for name in ("BaseStorage", "GlobalStorage")},
}


# -------------------------------------------------------------------------------------------------------- ASE's rows
def count_rows(location: Location) -> int:
    with open_lmdb(location) as transaction:
        return len(_ids(location, transaction))


def _ids(location: Location, transaction: lmdb.Transaction) -> range | list[int]:
    location.where = "key nextid"
    following = decode(transaction.get(b"nextid"))
    if not isinstance(following, int):
        raise location.fault("the number of rows is missing: no database of ASE")
    deleted = set(decode(transaction.get(b"deleted_ids")) or [])
    return [key for key in range(1, following) if key not in deleted] if deleted else range(1, following)


def read_rows(location: Location, span: tuple[int, int]) -> Iterator[tuple[int, RawRecord]]:
    """Yield (id, row) for a range of the rows of an .aselmdb file, in the order of ids, with NumPy arrays."""
    with open_lmdb(location) as transaction:
        ids = _ids(location, transaction)
        for key in ids[slice(*span)]:
            location.where = f"row {key} of {ids[-1]}"
            value = transaction.get(str(key).encode())
            if value is None:
                raise location.fault("missing")
            row = decode(value)
            if not isinstance(row, dict):
                raise location.fault("not a row of ASE")
            yield key, row


def decode(value: bytes | memoryview | None) -> Any:
    return None if value is None else to_arrays(orjson.loads(zlib.decompress(value)))


def to_arrays(value: Any) -> Any:
    """Replace {"__ndarray__": [shape, type, numbers]} by arrays, at any depth."""
    if isinstance(value, dict):
        if value.keys() == {"__ndarray__"}:
            shape, kind, numbers = value["__ndarray__"]
            if np.dtype(kind).kind not in "biuf":
                raise ValueError(f"an array of type {kind}")
            return np.array(numbers, kind).reshape(shape)
        return {key: to_arrays(each) for key, each in value.items()}
    return value
