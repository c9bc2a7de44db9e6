"""Records as a page that can be linked to: its figures, its plots, its templates."""
