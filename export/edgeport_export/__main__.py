"""`python -m edgeport_export` is `edgeport`, for machines without scripts on the path."""

import sys

from .cli import main

sys.exit(main())
