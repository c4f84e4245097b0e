# The worker: Prefect and this package. Built from the root of a checkout:
#   docker build -f deployment-templates/images/worker.Dockerfile -t <image> .
# To pin the base image, put its digest behind the tag (`docker buildx imagetools inspect IMAGE`):
#   FROM prefecthq/prefect:3.8.8-python3.11@sha256:…
ARG PREFECT_VERSION=3.8.8
FROM prefecthq/prefect:${PREFECT_VERSION}-python3.11

# constraints.txt has the versions that the tests ran with.
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY prefect_ray_worker /src/prefect_ray_worker
RUN pip install --no-cache-dir --constraint /src/constraints.txt '/src[kuberay]' && rm -rf /src

# Not root. The process writes only to Prefect's home.
ENV PREFECT_HOME=/tmp/prefect
USER 1000:1000
CMD ["prefect", "worker", "start", "--pool", "ray", "--type", "ray", "--with-healthcheck"]
