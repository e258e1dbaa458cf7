"""Credentials for the API server: a kubeconfig, or the service account of a pod.

Owns reading and checking them, each fault one sentence. Talks to nobody.
"""

from __future__ import annotations

import os
import ssl

from kubernetes import client, config
from yaml import YAMLError

from lbless_edge.process import Fatal


def read_credentials(kubeconfig: str | None) -> client.Configuration:
    """Return the client's configuration: from `kubeconfig` if given, else from the in-cluster account.

    `kubeconfig` may be several paths joined by ``:``, as in $KUBECONFIG. In-cluster tokens are read anew
    from their file as they are used. Raises Fatal.
    """
    configuration = client.Configuration()
    if kubeconfig:
        _load_kubeconfig(kubeconfig, configuration)
        _strip_token(configuration)
        _check_certificates(f"The kubeconfig {kubeconfig}", configuration)
        return configuration
    try:
        config.load_incluster_config(client_configuration=configuration)
    except (config.ConfigException, OSError):
        raise Fatal(
            "There are no Kubernetes credentials: set $KUBECONFIG, or run in a pod with a service account."
        ) from None
    _check_certificates("The pod's service account", configuration)
    return configuration


def _load_kubeconfig(kubeconfig: str, configuration: client.Configuration) -> None:
    if not any(os.path.isfile(path) for path in kubeconfig.split(os.pathsep)):
        raise Fatal(f"The kubeconfig {kubeconfig} does not exist: correct $KUBECONFIG.")
    try:
        config.load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
    except (config.ConfigException, YAMLError, ValueError, OSError) as error:
        raise Fatal(f"The kubeconfig {kubeconfig} cannot be used ({_sentence(error)}): correct it.") from None
    except (TypeError, AttributeError, KeyError):
        # The loader reads whatever YAML there is without checking its shape first.
        raise Fatal(
            f"The kubeconfig {kubeconfig} cannot be used (it is no kubeconfig): correct it."
        ) from None


def _strip_token(configuration: client.Configuration) -> None:
    """A token file may end in a newline, as kubectl allows; in an HTTP header it would be an error."""
    load = configuration.refresh_api_key_hook
    if load is None:
        return

    def load_and_strip(current: client.Configuration) -> None:
        load(current)
        current.api_key["BearerToken"] = current.api_key["BearerToken"].strip()

    configuration.refresh_api_key_hook = load_and_strip


def _check_certificates(owner: str, configuration: client.Configuration) -> None:
    """Load what a connection will load, so that a wrong file is told from a server that is away."""
    if not str(configuration.host).startswith("https"):
        return
    context = ssl.create_default_context()
    try:
        if configuration.ssl_ca_cert:
            context.load_verify_locations(configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Fatal(
            f"{owner} names a certificate or key that cannot be read ({_sentence(error)}): correct it."
        ) from None


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
