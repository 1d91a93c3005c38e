"""One short file for each command of a plan, and two commands for use by hand."""

import gc

# While libraries are imported, much is made and little of it is garbage; looking for it at Python's threshold of 700
# objects takes a tenth of the CPU time in which a stage starts.
gc.set_threshold(50_000, 20)
