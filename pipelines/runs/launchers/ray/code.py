"""The project's own code for the nodes: a zip of `pipelines/` that Ray unpacks where a job starts, so that what runs there is what
the driver has. Its dependencies are the node's own, and are held to the driver's versions before anything runs."""

import hashlib
import io
import zipfile
from functools import cache

from pipelines.lake.paths import PROJECT

PATTERNS = ("pipelines/**/*.py", "pipelines/weights/shipped_configs/*.json", "data/general.json", "data/benchmarks/*")
PREFIX = "_ray_pkg_"  # as Ray names its packages
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same sources make the same zip


@cache
def package() -> tuple[str, bytes]:
    """The zip's name, which is its content's hash, and its bytes."""
    files = sorted({path for pattern in PATTERNS for path in PROJECT.glob(pattern)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            name = str(path.relative_to(PROJECT))
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    return f"{PREFIX}{hashlib.sha256(content).hexdigest()[:16]}.zip", content
