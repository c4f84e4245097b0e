"""Where access comes from, how it is renewed, and what a block must not do."""

import base64
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from prefect_ray_worker.errors import (
    CredentialsUnreadable,
    InvalidConfiguration,
    KubernetesTlsFailed,
    KubernetesUnauthorized,
)
from prefect_ray_worker.kubernetes_api import credentials
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from tests.fake_kubernetes import CRD, MISSING_CRD, FakeKubernetes


@pytest.fixture(autouse=True)
def no_kubernetes_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests must not depend on the kubeconfig of the person who runs them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


async def refusal(kubeconfig: Kubeconfig | None = None) -> str:
    with pytest.raises(InvalidConfiguration) as caught:
        async with KubernetesClient(kubeconfig):
            pass
    return str(caught.value)


def block(**user: Any) -> dict[str, Any]:
    return {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": "https://kube:6443"}}],
        "users": [{"name": "a", "user": user}],
    }


async def test_without_any_kubeconfig_it_says_so() -> None:
    assert "There is no access to Kubernetes" in await refusal()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"contexts": "s3cret"},
        {**block(token="s3cret"), "users": []},
        {**block(), "clusters": 1},
    ],
)
async def test_what_is_no_kubeconfig_is_refused_without_its_text(content: dict[str, Any]) -> None:
    said = await refusal(Kubeconfig.of_block(content))
    assert "is not a kubeconfig" in said
    assert "s3cret" not in said


async def test_a_context_that_is_not_there_is_named() -> None:
    assert "'other' not found" in await refusal(Kubeconfig.of_block(block(token="a"), "other"))


@pytest.mark.parametrize(
    ("user", "named"),
    [
        ({"exec": {"apiVersion": "v1", "command": "touch"}}, "exec"),
        ({"tokenFile": "/etc/shadow"}, "tokenFile"),
        ({"client-certificate": "/a", "client-key": "/b"}, "client-certificate, client-key"),
    ],
)
async def test_a_block_must_not_run_commands_or_read_files_here(
    user: dict[str, Any], named: str
) -> None:
    said = await refusal(Kubeconfig.of_block(block(**user)))
    assert f"must not use {named}:" in said
    assert "KUBECONFIG" in said


@pytest.mark.parametrize(
    "server",
    [
        "kube:6443",
        "https://u:s3cret@kube",
        "ftp://kube",
        "",
        "http://kube:8080",
        "https://kube:99999",
        "https://10.0.0.256:6443",
        "https://ku\u200bbe:6443",
    ],
)
async def test_an_address_that_cannot_work_is_refused_without_its_password(server: str) -> None:
    content = block(token="a")
    content["clusters"][0]["cluster"]["server"] = server
    said = await refusal(Kubeconfig.of_block(content))
    assert "`server`" in said
    assert "s3cret" not in said


PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "s3cret"}


@pytest.mark.parametrize(
    ("cluster", "user", "field", "way_out"),
    [
        ({"proxy-url": "http://u:s3cret@p"}, {}, "clusters[].cluster.proxy-url", "HTTPS_PROXY"),
        ({"tls-server-name": "kube.a"}, {}, "clusters[].cluster.tls-server-name", "`server`"),
        ({}, {"token": "s3cret", "as": "admin"}, "users[].user.as`", "rights"),
        ({}, {"auth-provider": {"name": "gcp"}}, "users[].user.auth-provider", "exec plugin"),
        (
            {},
            {"exec": {**PLUGIN, "apiVersion": "client.authentication.k8s.io/v1"}},
            "users[].user.exec.apiVersion",
            "client.authentication.k8s.io/v1beta1",
        ),
        (
            {},
            {"exec": {**PLUGIN, "provideClusterInfo": True}},
            "users[].user.exec.provideClusterInfo",
            "`args`",
        ),
    ],
)
async def test_what_lightkube_would_ignore_is_refused_by_name(
    cluster: dict[str, Any],
    user: dict[str, Any],
    field: str,
    way_out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = block(**user)
    content["clusters"][0]["cluster"].update(cluster)
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(content))
    monkeypatch.setenv("KUBECONFIG", str(path))
    said = await refusal()
    assert f"`{field}" in said
    assert way_out in said
    assert "s3cret" not in said


async def test_a_block_must_not_have_what_lightkube_would_ignore() -> None:
    content = block(token="a")
    content["clusters"][0]["cluster"]["proxy-url"] = "http://proxy:8080"
    assert "proxy-url" in await refusal(Kubeconfig.of_block(content))


async def test_several_files_in_the_environment_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/a:{tmp_path}/b")
    assert "kubectl config view --flatten" in await refusal()


def test_a_kubeconfig_is_hashable_and_shows_no_secret() -> None:
    one, two = (Kubeconfig.of_block(block(token="s3cret")) for _ in range(2))
    assert {one: 1}[two] == 1
    assert "s3cret" not in repr(one)


async def test_the_file_of_the_environment_is_used(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path)))
    async with KubernetesClient() as client:
        assert await client.version() == "v1.36.2"
        assert client.access.namespace == "ray"
        assert not client.access.is_inside


async def test_a_token_file_is_read_again_when_its_token_has_expired(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("worker-token")
    path = kubernetes.write_kubeconfig(tmp_path, user={"tokenFile": str(token)})
    monkeypatch.setenv("KUBECONFIG", str(path))
    async with KubernetesClient() as client:
        await client.version()
        kubernetes.users = {"new-token": kubernetes.worker}
        with pytest.raises(KubernetesUnauthorized):
            await client.version()
        token.write_text("new-token")
        await client.version()
        token.unlink()
        kubernetes.users.clear()
        with pytest.raises(CredentialsUnreadable, match="cannot be read now"):
            await client.version()


async def test_a_plugin_is_run_again_when_its_token_has_expired(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, plugin = tmp_path / "token", tmp_path / "plugin"
    token.write_text("worker-token")
    plugin.write_text(f'#!/bin/sh\nprintf \'{{"status": {{"token": "%s"}}}}\' "$(cat {token})"\n')
    plugin.chmod(0o700)
    await _with_plugin(kubernetes, tmp_path, monkeypatch, str(plugin))
    async with KubernetesClient() as client:
        await client.version()
        kubernetes.users = {"new-token": kubernetes.worker}
        token.write_text("new-token")
        await client.version()


async def test_the_output_of_a_plugin_that_fails_is_not_shown(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text("#!/bin/sh\necho s3cret >&2; exit 3\n")
    plugin.chmod(0o700)
    for command in (str(plugin), str(tmp_path / "nothing")):
        await _with_plugin(kubernetes, tmp_path, monkeypatch, command)
        async with KubernetesClient() as client:
            with pytest.raises(KubernetesUnauthorized, match="exec plugin") as caught:
                await client.version()
            with pytest.raises(KubernetesUnauthorized):
                await client.gateway.headers()
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_in_a_pod_the_service_account_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    async with await _over_tls(authority) as kubernetes:
        account = tmp_path / "account"
        account.mkdir()
        (account / "token").write_text("worker-token")
        (account / "namespace").write_text("of-the-pod")
        authority.cert_pem.write_to_path(account / "ca.crt")
        monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", str(account))
        host, port = kubernetes.address.removeprefix("https://").split(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path, "nobody")))
        async with KubernetesClient() as client:
            assert await client.version() == "v1.36.2"
            assert client.access.is_inside
            assert client.access.namespace == "of-the-pod"
            assert client.access.home == await home("https://from-outside:6443", authority)


async def home(server: str, authority: trustme.CA | None = None) -> str:
    content = block()
    cluster = content["clusters"][0]["cluster"] = {"server": server}
    if authority is not None:
        data = base64.b64encode(authority.cert_pem.bytes()).decode()
        cluster["certificate-authority-data"] = data
    async with KubernetesClient(Kubeconfig.of_block(content)) as client:
        return client.access.home


async def test_one_kubernetes_is_told_from_another_by_its_authority_or_else_its_url() -> None:
    here, there = "https://10.96.0.1:443", "https://kube:6443"
    one, two = trustme.CA(), trustme.CA()
    assert await home(here, one) == await home(there, one)
    assert await home(here, one) != await home(here, two), "the URL in the pods of many"
    assert await home(here) == await home(f"{here}/") != await home(there)


async def test_another_authority_is_not_trusted() -> None:
    authority = trustme.CA()
    async with await _over_tls(authority) as kubernetes:
        for trusted, works in ((authority, True), (trustme.CA(), False)):
            data = base64.b64encode(trusted.cert_pem.bytes()).decode()
            content = kubernetes.kubeconfig(cluster={"certificate-authority-data": data})
            async with KubernetesClient(Kubeconfig.of_block(content)) as client:
                if works:
                    await client.version()
                else:
                    with pytest.raises(KubernetesTlsFailed, match="certificate-authority-data"):
                        await client.version()


async def test_a_certificate_that_is_none_is_refused_without_its_text() -> None:
    content = block(token="a")
    broken = base64.b64encode(b"s3cret").decode()
    content["clusters"][0]["cluster"]["certificate-authority-data"] = broken
    said = await refusal(Kubeconfig.of_block(content))
    assert "certificate of the kubeconfig" in said
    assert "s3cret" not in said


async def _over_tls(authority: trustme.CA) -> FakeKubernetes:
    if not CRD.exists():
        pytest.skip(MISSING_CRD)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return FakeKubernetes(tls=context)


async def _with_plugin(
    kubernetes: FakeKubernetes, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": command}
    path = kubernetes.write_kubeconfig(folder, user=json.loads(json.dumps({"exec": plugin})))
    monkeypatch.setenv("KUBECONFIG", str(path))
