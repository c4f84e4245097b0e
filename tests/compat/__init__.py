"""Which versions work: the built wheel, in a fresh environment for each combination.

`make compat` runs all; `make compat ARGS="oldest"` those whose name contains a text. Each
combination of Python, Ray and Prefect gets a virtual environment, the wheel and the core of the
end-to-end tests. `measured.json` keeps the results, from which the page in the docs is made.
"""
