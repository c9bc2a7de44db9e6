"""Why a decoder is as fast as it is: what its record says beyond the rows of a table."""
