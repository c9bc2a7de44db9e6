"""The compiled CPU step: its C++ beside its Python, packed products, huge pages."""
