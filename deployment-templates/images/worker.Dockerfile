# The worker: Prefect and this package. Built from the root of a checkout:
#   docker build -f deployment-templates/images/worker.Dockerfile -t <image> .
# From a wheel in dist/, built or released, instead of the checkout's code, as the release workflow does it:
#   docker build --build-context wheel=dist -f deployment-templates/images/worker.Dockerfile -t <image> .
# To pin the base image, put its digest behind the tag (`docker buildx imagetools inspect IMAGE`):
#   FROM prefecthq/prefect:3.8.8-python3.11@sha256:…
ARG PREFECT_VERSION=3.8.8

# A build context of this name takes the place of this stage.
FROM prefecthq/prefect:${PREFECT_VERSION}-python3.11 AS wheel
COPY pyproject.toml README.md LICENSE /src/
COPY prefect_ray_worker /src/prefect_ray_worker
RUN pip wheel --no-cache-dir --no-deps --wheel-dir / /src

FROM prefecthq/prefect:${PREFECT_VERSION}-python3.11
# constraints.txt has the versions that the tests ran with.
COPY constraints.txt /src/
COPY --from=wheel /prefect_ray_worker-*.whl /src/
RUN pip install --no-cache-dir --constraint /src/constraints.txt \
    "$(echo /src/prefect_ray_worker-*.whl)[kuberay]" && rm -rf /src

# Not root. The process writes only to Prefect's home.
ENV PREFECT_HOME=/tmp/prefect
USER 1000:1000
CMD ["prefect", "worker", "start", "--pool", "ray", "--type", "ray", "--with-healthcheck"]
