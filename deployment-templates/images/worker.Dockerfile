# The worker: Prefect and this package. Built from the root of a checkout:
#   docker build -f deployment-templates/images/worker.Dockerfile -t <image> .
ARG PREFECT_VERSION=3.8.8
FROM prefecthq/prefect:${PREFECT_VERSION}-python3.11

COPY pyproject.toml README.md LICENSE /src/
COPY prefect_ray_worker /src/prefect_ray_worker
RUN pip install --no-cache-dir /src && rm -rf /src

# No root, and nothing to write to but the home of Prefect.
ENV PREFECT_HOME=/tmp/prefect
USER 1000:1000
CMD ["prefect", "worker", "start", "--pool", "ray", "--type", "ray", "--with-healthcheck"]
