"""A hub on 127.0.0.1, in memory, that the real client of huggingface_hub talks to.

It knows users' tokens, private repositories, branches, pull requests, and both ways of uploading a file.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# Token -> its owner and whether it may write.
TOKENS = {"hf_alice": ("alice", True), "hf_reader": ("alice", False), "hf_bob": ("bob", True)}
_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status, code=None, message=None, body=None):
        super().__init__(status)
        self.status, self.body = status, body
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


@dataclass
class Repo:
    private: bool
    gated: bool = False
    branches: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)
    descriptions: list = field(default_factory=list)

    def commit(self, revision, files, message):
        content = json.dumps([len(self.commits), revision, sorted(files)]).encode()
        sha = hashlib.sha1(content).hexdigest()
        self.commits[sha] = files
        self.branches[revision] = sha
        self.messages.append(message)
        return sha

    def sha(self, revision):
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, revision="main"):
        return self.commits[self.sha(revision)]


class Hub:
    """The server; use it as a context manager.

    Attributes:
        endpoint: its address.
        repos: "owner/name" -> Repo.
        requests: "METHOD path" of every request so far.
        down: regular expression; requests in which it finds a match are answered `down_status`. None: all is well.
    """

    def __init__(self):
        self.repos, self.requests, self.uploads = {}, [], {}
        self.down, self.down_status = None, 503
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    # Each answer: a method whose docstring is the request that it is for.

    def create(self, call):
        """POST /api/repos/create"""
        user = call.writer()
        name = f"{call.json.get('organization') or user}/{call.json['name']}"
        if not name.startswith(f"{user}/"):
            raise Refused(403, message=f"You don't have the rights to create a model under the namespace {name}")
        made = name not in self.repos
        if made:
            self.repos[name] = Repo(private=call.json.get("visibility") == "private")
            self.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        place = "/spaces" if call.json.get("type") == "space" else ""
        return {"url": f"{self.endpoint}{place}/{name}", "name": name}, 200 if made else 409

    def validate_yaml(self, call):
        """POST /api/validate-yaml"""
        block = re.match(r"---\n(.*?)\n---\n", call.json["content"], re.DOTALL)
        if block is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}, 200
        errors = metadata_errors(block[1])
        return {"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200

    def info(self, call, repo, revision="main"):
        """GET /api/(models|spaces)/{repo}(/revision/(?P<revision>[^/]+))?"""
        opened = call.open(repo)
        sha = opened.sha(unquote(revision or "main"))
        names = [{"rfilename": name} for name in opened.commits[sha]]
        return {"id": repo, "modelId": repo, "private": opened.private, "sha": sha, "siblings": names, "tags": []}, 200

    def tree(self, call, repo, revision):
        """GET /api/(models|spaces)/{repo}/tree/(?P<revision>[^/]+)"""
        files = call.open(repo).files(unquote(revision))
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
            for name, content in files.items()
        ], 200

    def refs(self, call, repo):
        """GET /api/(models|spaces)/{repo}/refs"""
        branches = call.open(repo).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        return {"branches": named, "tags": [], "converts": []}, 200

    def branch(self, call, repo, name):
        """POST /api/(models|spaces)/{repo}/branch/(?P<name>[^/]+)"""
        opened = call.open(repo, write=True)
        if unquote(name) in opened.branches:
            return {}, 409
        opened.branches[unquote(name)] = opened.sha("main")
        return {}, 200

    def preupload(self, call, repo, revision):
        """POST /api/(models|spaces)/{repo}/preupload/(?P<revision>[^/]+)"""
        files = call.open(repo, write="create_pr" not in call.query).files(unquote(revision))
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png", ".flac")) else "regular",
                    "shouldIgnore": False,
                    "oid": _blob_id(files[file["path"]]) if file["path"] in files else None,
                }
                for file in call.json["files"]
            ]
        }, 200

    def batch(self, call, repo):
        """POST (/spaces)?/{repo}.git/info/lfs/objects/batch"""
        call.open(repo)
        missing = {"actions": {"upload": {"href": f"{self.endpoint}/upload/%s"}}}
        objects = [
            {"oid": item["oid"], "size": item["size"]}
            | ({} if item["oid"] in self.uploads else json.loads(json.dumps(missing).replace("%s", item["oid"])))
            for item in call.json["objects"]
        ]
        return {"transfer": "basic", "objects": objects}, 200

    def upload(self, call, oid):
        """PUT /upload/(?P<oid>[0-9a-f]{64})"""
        if hashlib.sha256(call.body).hexdigest() != oid:
            raise Refused(400, message="content differs from its sha256")
        self.uploads[oid] = call.body
        return {}, 200

    def commit(self, call, repo, revision):
        """POST /api/(models|spaces)/{repo}/commit/(?P<revision>[^/]+)"""
        is_request = "create_pr" in call.query
        opened, revision = call.open(repo, write=not is_request), unquote(revision)
        files = dict(opened.files(revision))
        message = None
        for line in call.body.decode().splitlines():
            key, value = json.loads(line).values()
            if key == "header":
                message = value["summary"]
                opened.descriptions.append(value["description"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.uploads[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, message=f"unknown operation {key}")
        target = (
            f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in opened.branches)}" if is_request else revision
        )
        sha = opened.commit(target, files, message)
        url = f"{self.endpoint}/{repo}/discussions/{target.rpartition('/')[2]}"
        answer = {"commitUrl": f"{self.endpoint}/{repo}/commit/{sha}", "commitOid": sha, "success": True}
        return answer | ({"pullRequestUrl": url} if is_request else {}), 200

    def resolve(self, call, repo, revision, path):
        """(GET|HEAD) (/spaces)?/{repo}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"""
        opened = call.open(repo)
        sha = opened.sha(unquote(revision))
        call.headers["X-Repo-Commit"] = sha
        if unquote(path) not in opened.commits[sha]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = opened.commits[sha][unquote(path)]
        call.headers["ETag"] = f'"{_blob_id(content)}"'
        return content, 200


_ANSWERS = [Hub.create, Hub.validate_yaml, Hub.tree, Hub.refs, Hub.branch, Hub.preupload, Hub.batch, Hub.upload]
_ANSWERS += [Hub.commit, Hub.resolve, Hub.info]


def metadata_errors(text):
    """What the Hub's rules say against the metadata of a card."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"no valid YAML: {error}"]
    datasets, base = data.get("datasets") or [], data.get("base_model")
    ids = [*datasets, *([base] if base else [])]
    errors = [f"{name!r} is no repository id" for name in ids if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name)]
    errors += [f"tag {tag!r} is no short text" for tag in data.get("tags") or [] if not 0 < len(tag) < 60]
    for model in data.get("model-index") or []:
        for result in model["results"]:
            lacks = [f"{part}.type" for part in ("task", "dataset") if not result.get(part, {}).get("type")]
            lacks += ["dataset.name"] * (not result["dataset"].get("name"))
            lacks += ["metrics"] * (
                not all(isinstance(metric.get("value"), int | float) for metric in result["metrics"])
            )
            errors += [f"a result of {model['name']} lacks {lack}" for lack in lacks]
    return errors


def _blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub):
    routes = [(re.compile(answer.__doc__.replace("{repo}", _NAME)), answer) for answer in _ANSWERS]

    class Call(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def answer(self):
            self.headers_in = self.headers
            self.body = self.rfile.read(int(self.headers_in.get("Content-Length") or 0))
            address = urlsplit(self.path)
            line, self.query = f"{self.command} {address.path}", parse_qs(address.query)
            hub.requests.append(line)
            # From here on `headers` are those of the answer.
            self.headers = {}
            try:
                content, status = self._found(line)
            except Refused as refused:
                content, status = refused.body or {}, refused.status
                self.headers |= {name: value for name, value in refused.headers.items() if value}
            self._send(content, status)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        @property
        def json(self):
            return json.loads(self.body)

        def user(self):
            """Name and right to write of whoever calls; an anonymous one has neither."""
            token = (self.headers_in.get("Authorization") or "").removeprefix("Bearer ")
            if token and token not in TOKENS:
                raise Refused(401, message="Invalid credentials in Authorization header")
            return TOKENS.get(token, (None, False))

        def writer(self):
            user, may_write = self.user()
            if user is None:
                raise Refused(401, message="Invalid username or password.")
            if not may_write:
                raise Refused(403, message="This token has no right to write")
            return user

        def open(self, name, write=False):
            user, _ = self.user()
            own = name.startswith(f"{user}/")
            if name not in hub.repos or (hub.repos[name].private and not own):
                raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
            if hub.repos[name].gated and not own:
                raise Refused(403, "GatedRepo", "Access is restricted to those who asked for it")
            if write and self.writer() and not own:
                raise Refused(403, message="You are not allowed to write here")
            return hub.repos[name]

        def _found(self, line):
            if hub.down is not None and re.search(hub.down, line):
                raise Refused(hub.down_status, message="Service Unavailable")
            for pattern, answer in routes:
                match = pattern.fullmatch(line)
                if match:
                    return answer(hub, self, **match.groupdict())
            raise Refused(404, message=f"no such request: {line}")

        def _send(self, content, status):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**self.headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            if not isinstance(content, bytes):
                self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Call
