"""`python -m fspad_bench` is `fspad-bench`."""

import sys

from fspad_bench.cli.main import main

sys.exit(main())
