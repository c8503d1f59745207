"""What the local Hub of the tests keeps: repositories, their commits and files."""

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any


class HubError(Exception):
    """An answer with an error status, in the form that huggingface_hub maps to its exceptions."""

    def __init__(self, status: int, message: str, code: str | None = None, **details: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.details = status, message, code, details


@dataclass(frozen=True)
class StoredFile:
    """One version of a file: `oid` is git's blob hash; LFS files also answer to their sha256."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    def listing(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """A repository: `commits` maps a commit hash to its files, `refs` a branch or tag name to a commit hash.

    `messages` are those of the commits; of a `gated` one, who has no token sees the listing and no file.
    """

    kind: str
    repo_id: str
    private: bool
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    gated: bool = False

    def commit(self, branch: str, files: dict[str, StoredFile], message: str) -> str:
        listing = [f"{path} {stored.sha256}" for path, stored in sorted(files.items())]
        record = "\n".join([self.repo_id, self.refs.get(branch, ""), message, *listing])
        commit_hash = hashlib.sha1(record.encode()).hexdigest()
        self.commits[commit_hash] = dict(files)
        self.refs[branch] = commit_hash
        self.messages.append(message)
        return commit_hash

    def resolve(self, revision: str) -> str:
        commit_hash = self.refs.get(revision, revision)
        if commit_hash not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit_hash

    def describe(self, revision: str) -> dict:
        commit_hash = self.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(self.commits[commit_hash])]
        return {
            "_id": hashlib.md5(self.repo_id.encode()).hexdigest()[:24],
            "id": self.repo_id,
            "modelId": self.repo_id,
            "sha": commit_hash,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }

    def tree(self, revision: str, folder: str, recursive: bool) -> list[dict]:
        files = self.commits[self.resolve(revision)]
        prefix = f"{folder}/" if folder else ""
        inside = {path: stored for path, stored in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        entries = []
        folders = set()
        for path, stored in sorted(inside.items()):
            parents = [str(parent) for parent in PurePosixPath(path[len(prefix) :]).parents][-2::-1]
            folders.update(prefix + parent for parent in (parents if recursive else parents[:1]))
            if recursive or not parents:
                entries.append(stored.listing(path))
        return entries + [
            {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
            for path in sorted(folders)
        ]
