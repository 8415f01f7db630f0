"""`python -m edgeport_runtime` is `edgeport-run`, for machines where scripts are not on the path."""

import sys

from .cli import main

sys.exit(main())
