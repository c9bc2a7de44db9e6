"""Profiling: where a step's time goes, and what each GPU kernel costs."""
