"""Optional packages, installed by make into the checkout's environment, without a copy of the
project in it."""

import os
import subprocess
import tomllib

import pytest

from pipelines.lake.paths import PROJECT

EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=PROJECT, env=own, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("named", ["", "nope", "ray,nope", "tool", "ray]; true #"])
def test_an_extra_that_does_not_exist_is_refused_before_anything_is_installed(named: str) -> None:
    refused = make("--no-print-directory", "--silent", "--assume-old=setup", "extras", f"E={named}")
    assert refused.returncode == 2
    assert "for instance: make extras E=ray" in refused.stderr or "such as ray" in refused.stderr


@pytest.mark.parametrize("named", [*sorted(EXTRAS), "ray,tune"])
def test_an_extra_joins_the_checkout_at_the_locked_versions(named: str) -> None:
    dry_run = make("--dry-run", "--assume-old=setup", "extras", f"E={named}").stdout
    (install,) = [line for line in dry_run.splitlines() if " install " in line and "--editable" in line]
    assert install.endswith(f"--editable '.[{named}]'") and install.count("--constraint requirements") == 2
