"""The project's own code for the nodes: a zip of `pipelines/` that Ray unpacks where a job starts, so that what runs there is what
the driver has. Its dependencies are the node's own, and are held to the driver's versions before anything runs."""

import hashlib
import io
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipelines.paths import PROJECT
from pipelines.runs.worker import package_versions

TAKEN = ("pipelines/**/*.py", "pipelines/shipped_configs/*.json", "data/general.json")
PREFIX = "_ray_pkg_"  # as Ray names its packages
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same sources make the same zip


@cache
def package() -> tuple[str, bytes]:
    """The zip's name, which is its content's hash, and its bytes."""
    files = sorted({path for pattern in TAKEN for path in PROJECT.glob(pattern)})
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            name = str(path.relative_to(PROJECT))
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), path.read_bytes(), zipfile.ZIP_DEFLATED)
    content = made.getvalue()
    return f"{PREFIX}{hashlib.sha256(content).hexdigest()[:16]}.zip", content


def versions() -> dict[str, str]:
    """What must be equal on the driver and on a node: Python's minor version and the packages that compute."""
    found = {name: version.split("+")[0] for name, version in package_versions().items()}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


def different(driver: Mapping[str, str]) -> str | None:
    """What this node has otherwise than the driver, in words; None where all is equal."""
    here = versions()
    names = [name for name in {**driver, **here} if driver.get(name) != here.get(name)]
    if not names:
        return None
    has = ", ".join(f"{name} {here.get(name, 'not installed')}" for name in names)
    wants = ", ".join(f"{name} {driver.get(name, 'not installed')}" for name in names)
    where = Path(sys.executable)
    return f"{where} has {has}; the driver has {wants}: install the driver's requirements.lock there, or set ray.python"
