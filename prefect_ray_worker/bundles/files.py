"""The files that a caller names with `include_files`."""

from fnmatch import fnmatch
from pathlib import Path

from pathspec import GitIgnoreSpec

from prefect_ray_worker.errors import BundleRefused

_NEVER = ("__pycache__/", "*.pyc", ".git/", ".venv/", "venv/", "node_modules/", ".DS_Store")
_SENSITIVE = (
    ".env*", "*.pem", "*.key", "*.p12", "*.pfx", ".netrc", ".pypirc", "id_rsa*", "id_ed25519*",
    "credentials.json", "profiles.toml",
)  # fmt: skip
_WILDCARDS = frozenset("*?[")


def included_files(patterns: list[str], base: Path) -> list[Path]:
    """Return the files that patterns name: files, folders, globs, and `!pattern` to leave some out.

    Files that `.prefectignore` names are left out, except those that are written out.

    Args:
        patterns: Relative to the base folder.
        base: Where the patterns begin.

    Raises:
        BundleRefused: A pattern matches nothing or leads out of the folder, or a file looks like a
            secret and is not written out.
    """
    base = base.resolve()
    ignored = GitIgnoreSpec.from_lines([*_NEVER, *_ignored_by_project(base)])
    left_out = GitIgnoreSpec.from_lines(
        [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    )
    found: dict[Path, None] = {}
    for pattern in patterns:
        if pattern.startswith("!"):
            continue
        matches = _matches_of(pattern, base)
        if not matches:
            raise BundleRefused(
                f"include_files names {pattern!r}, and {base} has no such file. Set "
                "include_files_base_dir if the pattern begins in another folder."
            )
        is_written_out = matches == [base / pattern]
        for path in matches:
            relative = path.relative_to(base).as_posix()
            if left_out.match_file(relative):
                continue
            if not is_written_out and ignored.match_file(relative):
                continue
            if base not in path.resolve().parents:
                raise BundleRefused(
                    f"include_files {pattern!r} matches {relative}, a link to a file outside "
                    f"{base}. Put the file itself into the folder, or leave it out with "
                    f'"!{relative}".'
                )
            if not is_written_out and _is_sensitive(path.name):
                raise BundleRefused(
                    f"include_files {pattern!r} would send {relative}, which looks like a secret. "
                    f'Leave it out with "!{relative}", or write its name out to send it.'
                )
            found[path] = None
    return list(found)


def _matches_of(pattern: str, base: Path) -> list[Path]:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise BundleRefused(
            f"include_files names {pattern!r}, which leads out of {base}. Name files in that "
            "folder, or set include_files_base_dir."
        )
    path = base / pattern
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if path.is_file():
        return [path]
    if not _WILDCARDS & set(pattern):
        return []
    return sorted(p for p in base.glob(pattern) if p.is_file())


def _is_sensitive(name: str) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in _SENSITIVE)


def _ignored_by_project(base: Path) -> list[str]:
    for folder in dict.fromkeys((base, Path.cwd())):
        path = folder / ".prefectignore"
        if path.is_file():
            return path.read_text().splitlines()
    return []
