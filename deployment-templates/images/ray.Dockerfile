# Ray nodes: Ray, and Prefect for the drivers. The worker sends the driver itself with each job.
# For another base image, such as rayproject/ray:2.60.0-py311-gpu: docker build --build-arg BASE=…
# To pin it, put its digest behind the tag (`docker buildx imagetools inspect IMAGE`): BASE=rayproject/ray:…@sha256:…
ARG RAY_VERSION=2.60.0
ARG BASE=rayproject/ray:${RAY_VERSION}-py311
FROM ${BASE}

ARG PREFECT_VERSION=3.8.8
RUN pip install --no-cache-dir "prefect==${PREFECT_VERSION}"

# This package, for flows of a Prefect process worker (../zero-capacity-node, ../sidecar): they import RayTaskRunner
# from it, and only this package's own worker sends it.
# COPY pyproject.toml README.md LICENSE /src/
# COPY prefect_ray_worker /src/prefect_ray_worker
# RUN pip install --no-cache-dir /src

# Your flows' packages, and the flows themselves if the image has them:
# COPY requirements.txt /tmp/requirements.txt
# RUN pip install --no-cache-dir -r /tmp/requirements.txt
# COPY flows /opt/flows
