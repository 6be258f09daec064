"""`python -m jaxprune`."""

import sys

from jaxprune._cli import main

sys.exit(main())
