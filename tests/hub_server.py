"""A small server of the Hugging Face Hub's HTTP interface, for tests: loopback only, everything in memory.

It speaks the part of the interface that `push_to_hub`, `upload_folder`, `from_pretrained`, `snapshot_download` and
`load_dataset` use over the LFS path (`HF_HUB_DISABLE_XET=1`). A commit is an immutable listing of files under its own
hash, so old revisions stay readable, as on the Hub.

    with HubServer() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(home)})
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_metadata import front_matter, problems
from tests.hub_storage import HubError, Repository, StoredFile

# As the Hub's default .gitattributes: these go through LFS, and so does everything of 10 MB and more.
LFS_SUFFIXES = {".safetensors", ".parquet", ".png", ".bin", ".model", ".npz"}
LFS_THRESHOLD = 10_000_000


@dataclass
class Fault:
    """Something that goes wrong with the next requests of a kind.

    Attributes:
        request: pattern that "METHOD /path?query" matches at its beginning.
        times: how often it goes wrong; then it is as if it never had.
        status: of the answer; 0 for the right answer, slowly or cut off.
        headers: of the answer.
        seconds: before the answer.
        rate: bytes of content in a second; 0 for all at once.
        cut: bytes of content after which the connection ends; None for no cut. Of a request with a body, the
            connection ends before the body is read.
    """

    request: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    rate: int = 0
    cut: int | None = None


class Server(ThreadingHTTPServer):
    """Without a word about clients that hang up, which some tests want."""

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class HubServer:
    """The server and its state. Writing, and reading what is private, takes the bearer token `token`."""

    def __init__(self, token: str = "hf_local", user: str = "tester"):
        self.token, self.user = token, user
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.waiting: list[str] = []  # those whose answer a fault delays
        self.faults: list[Fault] = []
        self.bytes_sent = 0
        self.lock = threading.Lock()
        handler = type("Handler", (HubRequestHandler,), {"hub": self})
        self.server = Server(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home) -> dict[str, str]:
        """Environment variables of a client process whose caches live under the folder `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": f"{home}/modules",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def fault_of(self, request: str) -> Fault | None:
        """What goes wrong with a request; counts down."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.match(fault.request, request):
                    fault.times -= 1
                    return fault
        return None

    def repository(self, kind: str, repo_id: str, authorized: bool) -> Repository:
        found = self.repositories.get((kind, repo_id))
        if found is None or (found.private and not authorized):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return found


class HubRequestHandler(BaseHTTPRequestHandler):
    """One request. `respond` finds the endpoint; endpoints return what is sent as JSON."""

    protocol_version = "HTTP/1.1"
    hub: HubServer
    fault: Fault | None = None

    def log_message(self, *arguments) -> None:
        """Silence: a test prints only its own lines."""

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def respond(self) -> None:
        if self.path == "/test/faults":  # a client that sets the stage for itself
            self.hub.faults = [Fault(**values) for values in json.loads(self.read_body())]
            self.send_json(200, {})
            return
        self.fault = self.hub.fault_of(f"{self.command} {self.path}")
        if self.fault is not None:
            self.hub.waiting.append(f"{self.command} {self.path}")
            time.sleep(self.fault.seconds)
            if self.fault.cut is not None and self.command in ("POST", "PUT"):
                self.close_connection = True
                return
        body = self.read_body()
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.fault is not None and self.fault.status:
            self.send_json(self.fault.status, {"error": "a fault of the server"}, self.fault.headers)
            return
        try:
            with self.hub.lock:
                if "resolve" in parts[:4] and parts[0] != "api":
                    self.send_file(parts)
                    return
                answer = self.lfs(parts, body) if self.is_lfs(parts) else self.api(parts, query, body)
            self.send_json(200, answer)
        except HubError as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            answer = {"error": error.message, **error.details}
            self.send_json(error.status, answer, {**headers, "X-Error-Message": error.message})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send_json(self, status: int, answer, headers: dict[str, str] | None = None) -> None:
        self.send_content(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_content(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut is not None:
            content, self.close_connection = content[: self.fault.cut], True
        self.hub.bytes_sent += len(content)
        step = self.fault.rate // 10 if self.fault is not None and self.fault.rate else len(content) or 1
        for start in range(0, len(content), step):
            self.wfile.write(content[start : start + step])
            if step < len(content):
                time.sleep(0.1)

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def require_token(self) -> None:
        if not self.authorized:
            raise HubError(401, "Invalid username or password.")

    @staticmethod
    def is_lfs(parts: list[str]) -> bool:
        return parts[0] == "lfs" or parts[-4:] == ["info", "lfs", "objects", "batch"]

    def lfs(self, parts: list[str], body: bytes):
        """`POST {repository}.git/info/lfs/objects/batch`, then `PUT /lfs/{sha256}` for what the server lacks."""
        if parts[0] == "lfs":
            if hashlib.sha256(body).hexdigest() != parts[1]:
                raise HubError(400, "content does not match its hash")
            self.hub.lfs_objects[parts[1]] = body
            return {}
        self.require_token()
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs_objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def api(self, parts: list[str], query: dict[str, str], body: bytes):
        match (self.command, parts):
            case ("GET", ["api", "whoami-v2"]):
                self.require_token()
                return {"type": "user", "name": self.hub.user, "orgs": [], "auth": {"type": "access_token"}}
            case ("POST", ["api", "validate-yaml"]):
                request = json.loads(body)
                found = problems(request["repoType"], front_matter(request["content"]))
                if found:
                    raise HubError(400, "Invalid metadata", errors=[{"message": text} for text in found])
                return {"errors": [], "warnings": []}
            case ("POST", ["api", "repos", "create"]):
                return self.create_repository(json.loads(body))
            case ("DELETE", ["api", "repos", "delete"]):
                self.require_token()
                request = json.loads(body)
                repo_id = f"{request.get('organization') or self.hub.user}/{request['name']}"
                self.hub.repositories.pop((f"{request.get('type', 'model')}s", repo_id), None)
                return {}
            case (_, ["api", ("models" | "datasets" | "spaces") as kind, owner, name, *rest]):
                repository = self.hub.repository(kind, f"{owner}/{name}", self.authorized)
                return self.repository_api(repository, rest, query, body)
        raise HubError(404, f"no such endpoint: {self.command} {self.path}")

    def create_repository(self, request: dict) -> dict:
        self.require_token()
        kind = f"{request.get('type', 'model')}s"
        repo_id = f"{request.get('organization') or self.hub.user}/{request['name']}"
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.hub.url}/{prefix}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            raise HubError(409, "You already created this repo", url=url)
        private = request.get("visibility") == "private" or bool(request.get("private"))
        repository = Repository(kind, repo_id, private)
        repository.commit("main", {}, "initial commit")
        self.hub.repositories[kind, repo_id] = repository
        return {"url": url, "name": repo_id}

    def repository_api(self, repository: Repository, rest: list[str], query: dict[str, str], body: bytes):
        match (self.command, rest):
            case ("GET", []):
                return repository.describe("main")
            case ("GET", ["revision", revision]):
                return repository.describe(revision)
            case ("GET", ["tree", revision, *folder]):
                recursive = query.get("recursive", "").lower() in ("1", "true")
                return repository.tree(revision, "/".join(folder), recursive)
            case ("GET", ["refs"]):
                branches = [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit_hash}
                    for name, commit_hash in repository.refs.items()
                ]
                return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}
            case ("POST", ["paths-info", revision]):
                files = repository.commits[repository.resolve(revision)]
                paths = parse_qs(body.decode()).get("paths", [])
                return [files[path].listing(path) for path in paths if path in files]
        self.require_token()
        match (self.command, rest):
            case ("POST", ["preupload", branch]):
                files = repository.commits[repository.resolve(branch)]
                return {"files": [self.upload_mode(entry, files) for entry in json.loads(body)["files"]]}
            case ("POST", ["commit", branch]):
                return self.receive_commit(repository, branch, body)
            case ("POST", [("branch" | "tag"), name]):
                start = (json.loads(body) if body else {}).get("startingPoint") or "main"
                repository.refs[name] = repository.resolve(start)
                return {}
        raise HubError(404, f"no such endpoint: {self.command} {self.path}")

    @staticmethod
    def upload_mode(entry: dict, files: dict[str, StoredFile]) -> dict:
        """How a file is sent, and the hash of the one that is there: who has the same sends nothing."""
        is_lfs = PurePosixPath(entry["path"]).suffix in LFS_SUFFIXES or entry["size"] >= LFS_THRESHOLD
        mode = {"path": entry["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
        there = files.get(entry["path"])
        return mode | ({"oid": there.etag} if there is not None and there.is_lfs == is_lfs else {})

    def receive_commit(self, repository: Repository, branch: str, body: bytes) -> dict:
        """The operations of a commit, one JSON object per line; the branch only moves when all of them are valid."""
        files = dict(repository.commits[repository.resolve(branch)])
        message = ""
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                    parent = value.get("parentCommit")
                    if parent is not None and parent != repository.refs[branch]:
                        raise HubError(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = StoredFile(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    if value["oid"] not in self.hub.lfs_objects:
                        raise HubError(400, f"LFS pointer to an object that was not uploaded: {value['path']}")
                    files[value["path"]] = StoredFile(self.hub.lfs_objects[value["oid"]], True)
                case "deletedFile":
                    files.pop(value["path"], None)
                case "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {path: stored for path, stored in files.items() if not path.startswith(prefix)}
                case key:
                    raise HubError(400, f"unknown operation {key}")
        commit_hash = repository.commit(branch, files, message)
        url = f"{self.hub.url}/{repository.repo_id}/commit/{commit_hash}"
        return {"success": True, "commitOid": commit_hash, "commitUrl": url}

    def send_file(self, parts: list[str]) -> None:
        """`HEAD` and `GET [datasets/]{owner}/{name}/resolve/{revision}/{path}`, with byte ranges."""
        kind = parts.pop(0) if parts[0] in ("datasets", "spaces") else "models"
        owner, name, _, revision, *path_parts = parts
        repository = self.hub.repository(kind, f"{owner}/{name}", self.authorized)
        if repository.gated and not self.authorized:
            raise HubError(403, "Access to this repository is restricted.", "GatedRepo")
        commit_hash = repository.resolve(revision)
        stored = repository.commits[commit_hash].get("/".join(path_parts))
        if stored is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        headers = {
            "X-Repo-Commit": commit_hash,
            "ETag": f'"{stored.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if stored.is_lfs:
            headers |= {"X-Linked-Etag": f'"{stored.etag}"', "X-Linked-Size": str(len(stored.content))}
        content, status = stored.content, 200
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first)
            end = min(int(last) if last else len(content) - 1, len(content) - 1)
            if start > end:
                raise HubError(416, "Requested range not satisfiable")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.send_content(status, content, headers)
