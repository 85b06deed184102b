"""Decode one file and leave: what `latency.py` starts to time a cold start."""

import sys
from pathlib import Path

from fasdiff_edge import Decoder

model, engine, threads, file = sys.argv[1:]
Decoder(model=model, engine=engine, threads=int(threads)).decode(Path(file).read_bytes())
