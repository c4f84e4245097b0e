"""Results and caching across nodes: the example of the docs, with S3 from a local server."""
