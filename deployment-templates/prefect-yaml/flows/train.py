"""A flow whose driver uses the GPU that the job holds."""

import os

from prefect import flow


@flow(log_prints=True, retries=1)
def train(epochs: int = 3) -> str:
    # Ray shows a process the GPUs that it holds, and no others.
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    print(f"Training {epochs} epochs on GPU {gpus or '(none)'}")
    return gpus
