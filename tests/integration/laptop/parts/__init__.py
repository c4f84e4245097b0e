"""A package beside the script, with what does not survive being pickled by value."""
