"""Measure decoders on tasks: data, runs, records, statistics, verdicts and tables."""
