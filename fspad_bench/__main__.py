"""Run the command line as `python -m fspad_bench`."""

import sys

from fspad_bench.cli.main import main

sys.exit(main())
