# Ray nodes: Ray, and Prefect for the drivers. The driver itself comes along with each job.
ARG RAY_VERSION=2.60.0
FROM rayproject/ray:${RAY_VERSION}-py311

ARG PREFECT_VERSION=3.8.8
RUN pip install --no-cache-dir "prefect==${PREFECT_VERSION}"

# Your flows' packages, and the flows themselves if they are baked in:
# COPY requirements.txt /tmp/requirements.txt
# RUN pip install --no-cache-dir -r /tmp/requirements.txt
# COPY flows /opt/flows
