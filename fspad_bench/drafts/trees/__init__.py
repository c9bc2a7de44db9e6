"""How a draft's candidates become a tree: ranked, drawn, or built on the device."""
