"""`python -m fasdiff_edge.cli` is `fasdiff`."""

import sys

from . import main

sys.exit(main())
