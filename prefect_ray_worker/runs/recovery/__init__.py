"""Finding the runs that nobody looks after, and looking after them: see `reconciler`."""
