"""Every test computes on one thread, as every job does: more would get in each other's way."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
