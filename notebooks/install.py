"""Sets the project up beside a torch that is installed already, as on Colab: `python notebooks/install.py ENVIRONMENT`.

The new environment gets the packages of requirements.lock. A torch of this interpreter that pyproject.toml accepts is linked into
it with its CUDA libraries, in place of the lock's: it fits the machine's driver, and another one is gigabytes. The environment sees
nothing else of this interpreter, and changes nothing of it. This runs before anything is installed: standard library only.
"""

import operator
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TORCH_AND_ITS_LIBRARIES = re.compile(r"torch|triton|nvidia-(?!ml-py).*|cuda-.*")
RELEASE = re.compile(r"\d+(\.\d+)*")
BOUND = re.compile(r"(==|!=|>=|<=|>|<)\s*([\d.]+)")
COMPARE = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
CHECK = "import torch; print(f'torch {torch.__version__}, CUDA device: {torch.cuda.is_available()}')"
DONE = "installed.txt"  # in the environment, once it is complete: the lock that it was made from


def release(version: str) -> tuple[int, ...] | None:
    """The numbers of `2.13.0+cu130`, at least three; None for a pre-release."""
    public = version.partition("+")[0]
    if not RELEASE.fullmatch(public):
        return None
    numbers = [int(part) for part in public.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


def accepts(requirement: str, version: str) -> bool:
    """Whether `version` is within `requirement`, such as `torch>=2.12,<=2.13.0`; its local part (`+cu130`) does not count."""
    found = release(version)
    return found is not None and all(COMPARE[sign](found, release(bound)) for sign, bound in BOUND.findall(requirement))


def requirement() -> str:
    """What pyproject.toml asks of torch."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(one for one in project["dependencies"] if re.match(r"torch\b(?!-)", one))


def torch_here(requirement: str) -> list[metadata.Distribution]:
    """This interpreter's torch and, as far as they are installed, the libraries that it was built with; empty where there is none
    that `requirement` accepts, or none whose files are known."""
    try:
        torch = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        print("this interpreter has no torch: the lock's is installed")
        return []
    if not accepts(requirement, torch.version):
        print(f"torch {torch.version} is here, the project accepts {requirement}: the lock's is installed")
        return []
    found, waiting = {"torch": torch}, [torch]
    while waiting:
        for asked in waiting.pop().requires or ():
            name = normalized(re.split(r"[^\w.-]", asked, maxsplit=1)[0])
            if name in found or not TORCH_AND_ITS_LIBRARIES.fullmatch(name):
                continue
            with suppress(metadata.PackageNotFoundError):
                found[name] = metadata.distribution(name)
                waiting.append(found[name])
    if not all(one.files for one in found.values()):
        print(f"torch {torch.version} is here, but not which files it has: the lock's is installed")
        return []
    print(f"torch {torch.version} is here and stays, with {len(found) - 1} libraries")
    return list(found.values())


def normalized(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def link(distributions: Sequence[metadata.Distribution], site: Path) -> None:
    """Put links into the folder `site` to all that the distributions have at the top of theirs."""
    for one in distributions:
        tops = {file.parts[0] for file in one.files or ()} - {"..", "/", "__pycache__"}
        for top in sorted(tops):
            if not (site / top).is_symlink():  # `nvidia` is one folder of many distributions
                (site / top).symlink_to(Path(str(one.locate_file(top))).resolve())


def locked(*, with_torch: bool) -> list[str]:
    """The lock's requirements; without torch and its libraries where those are linked."""
    lines = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    names = {line: normalized(line.partition("==")[0]) for line in lines if line.strip()}
    return [line for line, name in names.items() if with_torch or not TORCH_AND_ITS_LIBRARIES.fullmatch(name)]


def make(environment: Path) -> Path:
    """Make an environment of this interpreter without any package, and return its folder of packages."""
    # Without pip in it: Debian's Python, which Colab has, cannot put it there. This interpreter's pip installs into it.
    venv.create(environment, clear=True, symlinks=True)
    at = {name: str(environment) for name in ("base", "platbase", "installed_base", "installed_platbase")}
    site = Path(sysconfig.get_path("purelib", "venv", at))
    site.mkdir(parents=True, exist_ok=True)
    return site


def install(environment: Path) -> None:
    """Make the environment and fill it.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    torch = torch_here(requirement())
    link(torch, make(environment))
    wanted = environment / "requirements.txt"
    # pip, too: the project fetches packaged weights with it
    wanted.write_text("\n".join([*locked(with_torch=not torch), "pip"]) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python_of(environment))]
    subprocess.run([*pip, "install", "--quiet", "--requirement", str(wanted)], check=True)
    project = ["--no-deps", "--no-build-isolation", "--editable", str(PROJECT)]
    subprocess.run([*pip, "install", "--quiet", *project], check=True)
    (environment / DONE).write_text(lock(), encoding="utf-8")


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def lock() -> str:
    """All that an environment is made from: one that was made from the same is left as it is."""
    return "\n".join((PROJECT / name).read_text(encoding="utf-8") for name in ("requirements.lock", "pyproject.toml"))


def is_complete(environment: Path) -> bool:
    done = environment / DONE
    return done.exists() and done.read_text(encoding="utf-8") == lock()


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python notebooks/install.py ENVIRONMENT", file=sys.stderr)
        return 2
    environment = Path(arguments[0]).absolute()
    if environment.exists() and not (environment / "pyvenv.cfg").exists():
        print(f"{environment}: expected a new folder or an environment to be made anew; it is neither", file=sys.stderr)
        return 2
    try:
        if is_complete(environment):
            print(f"{environment} is complete")
        else:
            install(environment)
        subprocess.run([str(python_of(environment)), "-c", CHECK], check=True)
    except subprocess.CalledProcessError as error:
        print(f"install.py: exit code {error.returncode} of {' '.join(error.cmd)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
