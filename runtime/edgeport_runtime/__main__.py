"""`python -m edgeport_runtime` is `edgeport-run`, for machines without scripts on the path."""

import sys

from .cli import main

sys.exit(main())
