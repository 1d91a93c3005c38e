"""`python -m tests.benchmarks [NAME ...]`: runs each bench_NAME.py here, prints its table, writes results/NAME.json.

A benchmark is a file bench_NAME.py with a function `main() -> Table`.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

from tests.benchmarks.measure import save, with_tuned_allocator

if __name__ == "__main__":
    with_tuned_allocator()
    found = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    if unknown := set(sys.argv[1:]) - set(found):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    for name in sys.argv[1:] or found:
        start = time.perf_counter()
        table = import_module(f"tests.benchmarks.bench_{name}").main()
        saved = save(name, table) if table.rows else "nothing to save"
        print(f"{table}\n{saved}, {time.perf_counter() - start:.0f} s\n", flush=True)
