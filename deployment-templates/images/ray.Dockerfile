# Ray nodes: Ray, and Prefect for the drivers. The worker sends the driver itself with each job.
# To pin the base image, put its digest behind the tag (`docker buildx imagetools inspect IMAGE`):
#   FROM rayproject/ray:2.60.0-py311@sha256:…
ARG RAY_VERSION=2.60.0
FROM rayproject/ray:${RAY_VERSION}-py311

ARG PREFECT_VERSION=3.8.8
RUN pip install --no-cache-dir "prefect==${PREFECT_VERSION}"

# Your flows' packages, and the flows themselves if the image has them:
# COPY requirements.txt /tmp/requirements.txt
# RUN pip install --no-cache-dir -r /tmp/requirements.txt
# COPY flows /opt/flows
