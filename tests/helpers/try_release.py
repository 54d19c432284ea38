"""A release, tried as far as it goes without publishing: versions, wheel and sdist, an install, the ComfyUI node pack.

    make release
    make release REPOSITORY=https://github.com/owner/name

docs/releasing.md says what to do with the result.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.node_pack import MAX_NODE_PACK_BYTES, write_pack, zip_pack

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"


def versions() -> dict[str, str]:
    """The version by the file that says it."""
    patterns = {
        "pyproject.toml": r'^version = "(.+)"$',
        "nft_pipeline/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## \[(\d.*?)\]",  # below a section [Unreleased], if there is one,
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else "no version"
    return found


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{' '.join(command)} ended with {done.returncode}")
    return done.stdout


def main() -> None:
    """Try every step and stop at the first that fails."""
    said = versions()
    if len(set(said.values())) != 1:
        sys.exit(f"The files name different versions: {said}. Make them the same.")
    version = said["pyproject.toml"]
    print(f"1. version        {version}, the same in {', '.join(said)}")

    for folder in (DIST, ROOT / "build"):
        shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", str(DIST))
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    built = sorted(DIST.iterdir())
    print("2. wheel, sdist   " + ", ".join(f"dist/{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in built))

    _run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built))
    print("3. twine check    passed")

    (wheel,) = DIST.glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, str(wheel))
        code = "import nft_pipeline; print(nft_pipeline.__version__, nft_pipeline.__file__)"
        seen = _run(
            sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {code}", folder, cwd=Path(folder)
        )
        if not seen.startswith(f"{version} {folder}"):
            sys.exit(f"the installed wheel is not what was built: {seen}")
    print(f"4. installed      the wheel, into an empty folder; it says {version}")

    repository = sys.argv[1] if len(sys.argv) > 1 else ""
    files = write_pack(DIST / "node_pack" / "diffusion-nft", repository)
    pack = DIST / "node_pack" / f"diffusion-nft-{version}.zip"
    zip_pack(DIST / "node_pack" / "diffusion-nft", files, pack)
    size = pack.stat().st_size
    if size > MAX_NODE_PACK_BYTES:
        sys.exit(f"the node pack has {size} bytes, expected at most {MAX_NODE_PACK_BYTES}; see .comfyignore")
    print(f"5. node pack      dist/node_pack/{pack.name} {size / 1e6:.1f} MB, {len(files)} files")
    if not repository:
        print("   without Repository, Icon and Banner, which the registry wants: make release REPOSITORY=https://...")
    print("Nothing was published. docs/releasing.md says how to go on.")


if __name__ == "__main__":
    main()
