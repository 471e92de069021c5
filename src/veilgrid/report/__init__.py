"""What a run leaves for people: the results folder, its tables and the self-contained report."""
