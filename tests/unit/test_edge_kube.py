from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from lbless_edge import kube
from lbless_edge.explain import explain
from lbless_edge.kube import (
    CLUSTERIPNODES,
    CLUSTERIPS,
    LEASES,
    NODES,
    Api,
    ApiError,
    connect,
    in_namespace,
    named,
)
from lbless_edge.process import Fatal
from unit.fakeapi import FakeApi


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


@pytest.fixture
def url(fake: FakeApi) -> Iterator[str]:
    with fake.serve() as url:
        yield url


def kubeconfig(
    directory: Path, server: str, *, user: dict[str, Any], cluster: dict[str, Any] | None = None
) -> str:
    path = directory / "kubeconfig"
    text = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(text))
    return str(path)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


def sentence_of(kubeconfig: str | None) -> str:
    with pytest.raises(Fatal) as raised:
        connect(kubeconfig)
    return str(raised.value)


def test_paths_name_one_object_whatever_the_name_holds() -> None:
    assert (
        in_namespace(LEASES, "lbless-system")
        == "/apis/coordination.k8s.io/v1/namespaces/lbless-system/leases"
    )
    assert (
        in_namespace(LEASES, "a", "../b?c") == "/apis/coordination.k8s.io/v1/namespaces/a/leases/..%2Fb%3Fc"
    )
    assert named(NODES, "n/1") == "/api/v1/nodes/n%2F1"


def test_a_kubeconfigs_token_is_sent(tmp_path: Path, fake: FakeApi, url: str) -> None:
    fake.put("a")
    assert connect(kubeconfig(tmp_path, url, user={"token": "secret"})).get(CLUSTERIPS)["items"]
    assert fake.headers[-1]["Authorization"] == "Bearer secret"
    assert fake.headers[-1]["User-Agent"].startswith("lbless/")


def test_a_token_file_that_ends_in_a_newline_is_sent_without_it(
    tmp_path: Path, fake: FakeApi, url: str
) -> None:
    (tmp_path / "token").write_text("secret\n")
    connect(kubeconfig(tmp_path, url, user={"tokenFile": "token"})).get(CLUSTERIPS)
    assert fake.headers[-1]["Authorization"] == "Bearer secret"


def test_an_in_cluster_token_is_read_again_from_its_file(
    tmp_path: Path, fake: FakeApi, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    loader = config.incluster_config.InClusterConfigLoader(str(token), "", try_refresh_token=True)
    loader.host, loader.ssl_ca_cert = url, None
    loader._read_token_file()
    configuration = client.Configuration()
    loader._set_config(configuration)
    api = Api(configuration)
    api.get(CLUSTERIPS)
    token.write_text("second")
    monkeypatch.setattr(loader, "token_expires_at", loader.token_expires_at.replace(year=2000))
    api.get(CLUSTERIPS)
    assert [h["Authorization"] for h in fake.headers] == ["bearer first", "bearer second"]
    token.write_text("")
    monkeypatch.setattr(loader, "token_expires_at", loader.token_expires_at.replace(year=2000))
    with pytest.raises(ApiError, match="Token file exists but empty") as raised:
        api.get(CLUSTERIPS)
    assert raised.value.status == 0


def test_a_kubeconfig_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    assert (
        sentence_of(f"{tmp_path}/none")
        == f"The kubeconfig {tmp_path}/none does not exist: correct $KUBECONFIG."
    )


@pytest.mark.parametrize(
    "text",
    ["", "not yaml: [", "[]", "just text", "{}", "current-context: c", "contexts: 5\nclusters: 5\nusers: 5\n",
     "current-context: c\ncontexts: [{name: c, context: {cluster: x, user: y}}]\nclusters: []\nusers: []\n",
     "\x00\x01", "{current-context: 5, contexts: [[]], clusters: [[]], users: [[]]}"],
)  # fmt: skip
def test_a_kubeconfig_of_any_wrong_shape_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    sentence = sentence_of(str(path))
    assert sentence.startswith(f"The kubeconfig {path} cannot be used (")
    assert sentence.endswith("): correct it.")
    assert "\n" not in sentence


def test_no_credentials_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert sentence_of(None) == (
        "There are no Kubernetes credentials: set $KUBECONFIG, or run in a pod with a service account."
    )


def test_a_certificate_that_is_none_is_told_from_a_server_that_is_away(tmp_path: Path) -> None:
    broken = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").decode()
    path = kubeconfig(
        tmp_path, "https://127.0.0.1:1", user={}, cluster={"certificate-authority-data": broken}
    )
    assert f"The kubeconfig {path} names a certificate or key that cannot be read" in sentence_of(path)
    path = kubeconfig(
        tmp_path, "https://127.0.0.1:1", user={}, cluster={"certificate-authority": "absent.crt"}
    )
    assert f"File does not exist: {tmp_path}/absent.crt" in sentence_of(path)


def test_of_several_kubeconfigs_one_has_to_exist(tmp_path: Path, fake: FakeApi, url: str) -> None:
    path = kubeconfig(tmp_path, url, user={"token": "secret"})
    connect(f"{tmp_path}/none:{path}").get(CLUSTERIPS)
    assert fake.headers


def test_a_refusal_carries_the_servers_words_and_wishes(fake: FakeApi, url: str) -> None:
    fake.refusals = [(429, {"message": "slow down\nplease", "reason": "TooManyRequests"}), (503, b"")]
    api = Api(client.Configuration(host=url))
    with pytest.raises(ApiError, match=f"^{url} refused GET {CLUSTERIPS} with 429: slow down$") as raised:
        api.get(CLUSTERIPS)
    error = raised.value
    assert (error.status, error.reason, error.retry_after_seconds) == (429, "TooManyRequests", 1)
    with pytest.raises(ApiError) as raised:
        api.get(CLUSTERIPS)
    assert raised.value.status == 503


def test_a_failed_request_is_not_repeated_behind_the_callers_back(fake: FakeApi, url: str) -> None:
    fake.refusals = [(0, ""), (500, {}), (429, {})]
    api = Api(client.Configuration(host=url))
    for _ in range(3):
        with pytest.raises(ApiError):
            api.get(CLUSTERIPS)
    assert len(fake.requests) == 3


def test_an_answer_that_never_comes_is_waited_for_as_long_as_was_said(fake: FakeApi, url: str) -> None:
    fake.refusals = [(-1, "")]
    api = Api(client.Configuration(host=url), read_timeout_seconds=0.2)
    began = time.monotonic()
    with pytest.raises(ApiError, match="cannot be reached: nothing was heard for too long") as raised:
        api.get(CLUSTERIPS)
    assert raised.value.status == 0
    assert time.monotonic() - began < 2


def test_the_sentence_of_a_fault_is_the_same_every_time() -> None:
    api = Api(client.Configuration(host="https://127.0.0.1:1"))
    sentences = set()
    for _ in range(3):
        with pytest.raises(ApiError) as raised:
            api.get(CLUSTERIPS)
        sentences.add(str(raised.value))
    assert sentences == {"The API server https://127.0.0.1:1 cannot be reached: Connection refused."}


def test_a_server_without_tls_where_tls_is_expected_is_a_sentence(url: str) -> None:
    api = Api(client.Configuration(host=url.replace("http:", "https:")))
    with pytest.raises(ApiError, match="cannot be reached: ") as raised:
        api.get(CLUSTERIPS)
    assert raised.value.status == 0


def test_an_applied_object_goes_out_as_json_with_its_manager(fake: FakeApi, url: str) -> None:
    Api(client.Configuration(host=url)).apply(named(CLUSTERIPNODES, "n"), {"a": [1]}, field_manager="me")
    assert fake.requests[-1] == (f"{CLUSTERIPNODES}/n", {"fieldManager": "me", "force": "true"})
    assert fake.headers[-1]["Content-Type"] == "application/apply-patch+yaml"
    assert json.loads(fake.bodies[-1]) == {"a": [1]}


def test_many_threads_share_one_api(fake: FakeApi, url: str) -> None:
    fake.put("a")
    api = Api(client.Configuration(host=url))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: api.get(CLUSTERIPS), range(80)))
    assert [len(answer["items"]) for answer in answers] == [1] * 80
    assert len(fake.requests) == 80


def test_as_many_watches_as_it_was_made_for_keep_their_connections(fake: FakeApi, url: str) -> None:
    count = 40
    api = Api(client.Configuration(host=url), connections=count)
    for _ in range(3):
        watches = [api.watch(NODES, "1") for _ in range(count)]
        wait_for(lambda: fake.open_watches == count, "the watches")
        fake.end_watches(cut=False)
        for watch in watches:
            assert not list(watch)
    assert fake.connections == count


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        (CLUSTERIPNODES, 404, "The CustomResourceDefinition clusteripnodes.lbless.dev is not installed"),
        (NODES, 404, "does not serve nodes: use Kubernetes 1.32 or newer"),
        (in_namespace(LEASES, "ns", "x"), 403, "A permission is missing, grant it (helm/lbless/rbac/): why"),
        (NODES, 401, "does not accept the credentials"),
        (NODES, 500, "why"),
    ],
)
def test_each_refusal_says_what_to_do(path: str, status: int, words: str) -> None:
    assert words in explain(ApiError(status, "why"), path, "https://server")


def test_the_head_of_a_watch_is_not_waited_for_as_long_as_its_events(fake: FakeApi, url: str) -> None:
    fake.put("n1")
    fake.refusals = [(-1, b"")]
    api = Api(client.Configuration(host=url))
    with pytest.raises(ApiError, match="nothing was heard for too long") as error:
        api.watch(NODES, "1", read_timeout_seconds=0.2, silence_seconds=60)
    assert error.value.timed_out
    watch = api.watch(NODES, "1", read_timeout_seconds=60, silence_seconds=0.2)
    assert next(watch).object["metadata"]["name"] == "n1"
    with pytest.raises(ApiError, match="nothing was heard for too long"):
        next(watch)


def test_only_a_server_that_may_still_be_working_is_given_more_time(fake: FakeApi, url: str) -> None:
    fake.refusals = [(0, b""), (500, b"no"), (-1, b"")]
    api = Api(client.Configuration(host=url), read_timeout_seconds=0.2)
    timed_out = []
    for _ in range(3):
        with pytest.raises(ApiError) as error:
            api.get(NODES)
        timed_out.append(error.value.timed_out)
    assert timed_out == [False, False, True]


def test_a_handshake_that_is_not_answered_says_nothing_of_how_long_the_server_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kube, "CONNECT_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ApiError, match="nothing was heard for too long") as error:
            Api(client.Configuration(host=url), read_timeout_seconds=60).get(NODES)
    assert not error.value.timed_out
