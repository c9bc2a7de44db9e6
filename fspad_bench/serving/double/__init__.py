"""A small server whose every probability is known, and which can make the field's published faults.

python -m fspad_bench.serving.double --port 8000 --fault bonus-without-temperature
"""
