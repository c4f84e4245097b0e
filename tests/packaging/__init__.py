"""What is built and published: the wheel, its metadata, and the workflow that checks it."""
