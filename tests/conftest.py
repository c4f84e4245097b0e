"""Offers the shared fixtures to every test."""

from tests.fixtures import (
    client,
    here,
    kubernetes,
    kubernetes_client,
    pool,
    prefect_api,
    prefect_settings,
    ray,
    ray_cluster,
    stage,
)

__all__ = [
    "client",
    "here",
    "kubernetes",
    "kubernetes_client",
    "pool",
    "prefect_api",
    "prefect_settings",
    "ray",
    "ray_cluster",
    "stage",
]
