"""The project's code for the nodes: a zip of `pipelines/` that Ray unpacks at the start of a job.

The node thus runs the driver's code. The dependencies are the node's own; a job checks that their
versions equal the driver's before anything runs.
"""

import hashlib
import io
import zipfile
from functools import cache

from pipelines.lake.paths import PROJECT

PATTERNS = ("pipelines/**/*.py", "pipelines/weights/shipped_configs/*.json", "data/general.json", "data/benchmarks/*")
# The prefix of Ray's own names for packages.
PREFIX = "_ray_pkg_"
# A fixed date, so that the same sources make the same zip.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@cache
def package() -> tuple[str, bytes]:
    """The zip's name, with the hash of its content, and its bytes."""
    files = sorted({path for pattern in PATTERNS for path in PROJECT.glob(pattern)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            name = str(path.relative_to(PROJECT))
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    return f"{PREFIX}{hashlib.sha256(content).hexdigest()[:16]}.zip", content
