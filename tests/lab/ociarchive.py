"""An image as an archive in the OCI's layout, which `ctr images import` takes: for nodes that have no registry.

Owns the format. The same trees give the same bytes: order, owners and times are none of the machine's.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class _Blob:
    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def description(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


def write(
    path: Path, name: str, layers: Sequence[Path], *, environment: Mapping[str, str], user: str, machine: str
) -> str:
    """Write the image `name` (REPOSITORY:TAG) of the trees `layers`, the lowest first; return its manifest's digest.

    `machine` as `platform.machine()` has it. Raises KeyError for one that no image of lbless is for.
    """
    architecture = {"architecture": _ARCHITECTURES[machine], "os": "linux"}
    blobs = [_Blob(_LAYER, _tar(layer)) for layer in layers]
    config = {
        **architecture,
        "config": {"Env": [f"{name}={value}" for name, value in environment.items()], "User": user},
        "rootfs": {"type": "layers", "diff_ids": [blob.digest for blob in blobs]},
    }
    configuration = _Blob(_CONFIG, _json(config))
    manifest = _Blob(
        _MANIFEST,
        _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": configuration.description,
                "layers": [blob.description for blob in blobs],
            }
        ),
    )
    annotations = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    entry = {**manifest.description, "platform": architecture, "annotations": annotations}
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
        **{
            f"blobs/sha256/{blob.digest.partition(':')[2]}": blob.data
            for blob in (manifest, configuration, *blobs)
        },
    }
    with tarfile.open(path, "w") as archive:
        for file, data in files.items():
            member = tarfile.TarInfo(file)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return manifest.digest


def _tar(tree: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(tree.rglob("*")):
            archive.add(path, str(path.relative_to(tree)), recursive=False, filter=_of_nobody)
    return buffer.getvalue()


def _of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
