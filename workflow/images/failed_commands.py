"""Names the cause of a command that failed, from the lines that it printed last, and what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Words of Podman, skopeo, Apptainer, enroot and Shifter's gateway, all in lower case: the first that occurs is the cause.
CAUSES = (
    (
        r"no space left on device|disk quota exceeded",
        "the disk or your quota is full: make room where the message says",
    ),
    (
        r"unauthorized|authentication required|denied: |access to the resource is denied|401|403 \(forbidden\)",
        "the registry refuses you: check the name, and log in with: {login}",
    ),
    (
        r"manifest unknown|name unknown|repository name not known|manifest[^\n]* not found|: not found|404",
        "the registry has no image of this name: check name and tag",
    ),
    (
        r"no such host|name or service not known|name resolution|server misbehaving",
        "no host of this name is known here",
    ),
    (r"server gave http response to https client", "this registry has no TLS; {insecure}"),
    (r"x509: |certificate", "the registry's certificate is not trusted here; {insecure}"),
    (
        r"connection refused|network is unreachable|no route to host|i/o timeout|deadline exceeded|connection timed out",
        "the registry cannot be reached from this machine: try a login node, or carry the image as a file "
        "(`image push --to oci-archive:FILE` where it was built, `image pull --from oci-archive:FILE` here)",
    ),
    (
        r"exec format error",
        "the image holds programs for another architecture: build on a machine like the site's nodes",
    ),
    (r"newuidmap|newgidmap|subuid|insufficient uids or gids", "your account needs subordinate ids: {ids}"),
)
LOGIN = {
    "apptainer": "apptainer registry login --username NAME oras://HOST",
    "singularity": "singularity registry login --username NAME oras://HOST",
    "shifterimg": "shifterimg login HOST",
}
INSECURE = {
    "apptainer": "if that is meant: export APPTAINER_NOHTTPS=1",
    "singularity": "if that is meant: export SINGULARITY_NOHTTPS=1",
}


def explain_failure(program: str, lines: Sequence[str]) -> list[str]:
    """Return one hint at the cause, or none if the lines hold no known one."""
    name, text = Path(program).name, "\n".join(lines).lower()
    for pattern, hint in CAUSES:
        if re.search(pattern, text):
            return [
                hint.format(
                    login=LOGIN.get(name, f"{name} login HOST"),
                    insecure=INSECURE.get(name, "if that is meant, name it with `insecure = true` in registries.conf"),
                    ids="ask an administrator to type: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 YOU",
                )
            ]
    return []
