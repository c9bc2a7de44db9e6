"""Pages and files for others to read: made of records, never of anything else."""
