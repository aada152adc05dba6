"""A stand-in for W&B's server on loopback, on which the real SDK runs online.

Keeps projects, runs with their history, files, artifacts with lineage, saved views and alerts in
memory, as far as the SDK, its reading API and wandb-workspaces ask for them; tests look at what it
received. It can be slow, refuse, hang and come back. Knows nothing of sweeps.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    OperationDefinitionNode,
    SelectionSetNode,
    parse,
    value_from_ast_untyped,
)

Mood = Literal["well", "hangs", "500", "429", "401", "old", "slow"]
ENTITY = "e"
NOW = "2026-01-01T00:00:00Z"
SLOW_S = 1.0


@dataclass
class Run:
    """One run as the server has it. `history` and `events` are lines of JSON, by their place."""

    name: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    overwritten: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    preempting: bool = False
    states: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """Return the history as it would be shown."""
        return [json.loads(line) for line in self.history]

    @property
    def config(self) -> dict[str, Any]:
        """What can be filtered by: without what the SDK adds."""
        given = json.loads(self.fields.get("config") or "{}")
        return {k: v["value"] for k, v in given.items() if k != "_wandb"}


@dataclass
class Artifact:
    """One version of an artifact; `files` are by path, `references` by path to an address."""

    id: str
    collection: str
    type: str
    digest: str
    client_id: str
    version: int
    description: str | None = None
    metadata: str | None = None
    aliases: set[str] = field(default_factory=set)
    state: str = "PENDING"
    manifest: bytes = b""
    run: str = ""

    @property
    def entries(self) -> dict[str, Any]:
        """The manifest's entries by path."""
        found: dict[str, Any] = json.loads(self.manifest or b'{"contents": {}}')["contents"]
        return found


@dataclass
class Backend:
    """What it does with a request: `first` until a run is there, `then` from then on.

    From request number `turns` on, it takes them as `turned`.
    """

    first: Mood = "well"
    then: Mood = "well"
    turns: int | None = None
    turned: Mood = "500"
    url: str = ""
    entities: tuple[str, ...] = (ENTITY,)
    min_sdk: str | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def mood(self) -> Mood:
        """How it takes the next request."""
        if self.turns is not None and len(self.times) >= self.turns:
            return self.turned
        return self.then if self.runs else self.first

    def be(self, mood: Mood) -> None:
        """Take every request so, from now on."""
        self.first = self.then = mood
        self.turns = None

    @property
    def history(self) -> list[str]:
        """The lines of all runs."""
        return [line for run in self.runs.values() for line in run.history]

    def of_type(self, kind: str) -> list[Artifact]:
        """Return the artifacts of one type that are whole."""
        return [a for a in self.artifacts.values() if a.type == kind and a.state == "COMMITTED"]

    def content(self, artifact: Artifact, path: str) -> bytes:
        """Return a file of an artifact."""
        return self.blobs[artifact.entries[path]["digest"]]


@contextlib.contextmanager
def wandb_backend(first: Mood = "well", then: Mood = "well") -> Iterator[Backend]:
    """Serve on a free port of the loopback address until the block ends."""
    backend = Backend(first, then)
    http = _Quiet(("127.0.0.1", 0), _handler(backend))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    backend.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield backend
    finally:
        backend.ended.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed ends its connections as it likes."""


def _handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            mood = backend.mood
            with backend.lock:
                backend.asked.append(f"{self.command} {self.path}")
                backend.bodies.append(body)
                backend.times.append(time.time())
            if mood == "hangs":
                backend.ended.wait()
                self.close_connection = True
                return
            if mood == "slow":
                backend.ended.wait(SLOW_S)
            if mood in ("500", "429", "401"):
                return self._answer(int(mood), b'{"error": "not now"}')
            if mood == "old":  # a server that does not know what it is asked
                told = b'{"errors": [{"message": "Cannot query field \\"x\\" on type \\"Q\\"."}]}'
                return self._answer(400, told)
            try:
                with backend.lock:
                    status, data = _answer(backend, self.command, self.path, body)
            except Exception:  # noqa: BLE001  of the stand-in: a test looks at `broken`
                backend.broken.append(traceback.format_exc())
                status, data = 400, b"{}"
            return self._answer(status, data)

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _answer(backend: Backend, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    path = urllib.parse.unquote(path)
    if path.endswith("/graphql"):
        return 200, json.dumps(_execute(backend, json.loads(body))).encode()
    if path.endswith("/file_stream"):
        run = backend.runs[path.split("/")[-2]]
        _stream(run, json.loads(body))
        return 200, b"{}"
    _, kind, *rest = path.split("/", 2)
    name = rest[0] if rest else ""
    if method == "PUT" and kind == "run-files":
        run_name, _, file = name.partition("/")
        backend.runs[run_name].files[file] = body
    elif method == "PUT" and kind == "blobs":
        backend.blobs[base64.b64encode(hashlib.md5(body).digest()).decode()] = body
    elif method == "PUT" and kind == "manifests":
        backend.artifacts[name].manifest = body
    elif method == "GET" and kind == "manifests":
        return 200, backend.artifacts[name].manifest
    elif method == "GET" and (blob := _blob(backend, path)) is not None:
        return 200, blob
    elif method == "GET":
        return 404, b"{}"
    return 200, b"{}"


def _blob(backend: Backend, path: str) -> bytes | None:
    """Return the file whose digest the address ends with, in hexadecimal digits."""
    with contextlib.suppress(ValueError):
        digest = base64.b64encode(bytes.fromhex(path.split("/")[-1])).decode()
        return backend.blobs.get(digest)
    return None


def _stream(run: Run, sent: dict[str, Any]) -> None:
    for file, lines in (("wandb-history.jsonl", run.history), ("wandb-events.jsonl", run.events)):
        part = (sent.get("files") or {}).get(file)
        for number, line in enumerate(part["content"], start=part["offset"]) if part else ():
            if number < len(lines):
                if lines[number] != line:
                    run.overwritten.append((lines[number], line))
                lines[number] = line
            else:
                lines.append(line)
    summary = (sent.get("files") or {}).get("wandb-summary.json")
    if summary:
        run.summary = json.loads(summary["content"][-1])
    run.preempting = run.preempting or bool(sent.get("preempting"))
    if sent.get("complete"):
        ended = "preempted" if run.preempting else "failed"
        run.state = "finished" if sent.get("exitcode") == 0 else ended
        run.states.append(run.state)


# GraphQL: a document is walked over plain values and functions -----------------------------------


def _execute(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    document = parse(request["query"])
    fragments = {
        d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)
    }
    (operation,) = (d for d in document.definitions if isinstance(d, OperationDefinitionNode))
    given = {d.variable.name.value: d.default_value for d in operation.variable_definitions or ()}
    variables = {n: value_from_ast_untyped(v) for n, v in given.items() if v is not None}
    variables |= request.get("variables") or {}
    root = MUTATIONS if operation.operation.value == "mutation" else QUERIES
    functions = {name: _bound(function, backend) for name, function in root.items()}
    backend.asked.append(operation.name.value if operation.name else "?")
    try:
        data = _select(functions, operation.selection_set, fragments, variables, backend)
    except Refused as refused:
        return {"data": None, "errors": [{"message": str(refused)}]}
    return {"data": data}


class Refused(Exception):
    """What the server answers with, in words."""


def _bound(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    return lambda **given: function(backend, **given)


def _select(
    value: Any,
    selection: SelectionSetNode | None,
    fragments: dict[str, FragmentDefinitionNode],
    variables: dict[str, Any],
    backend: Backend,
) -> Any:
    if value is None or selection is None:
        return value
    if isinstance(value, list):
        return [_select(item, selection, fragments, variables, backend) for item in value]
    found: dict[str, Any] = {}
    for node in selection.selections:
        if isinstance(node, FieldNode):
            name = node.name.value
            if name not in value:
                backend.unanswered.append(name)
                continue
            inner = value[name]
            if callable(inner):
                given = {
                    a.name.value: value_from_ast_untyped(a.value, variables)
                    for a in node.arguments or ()
                }
                inner = inner(**given)
            key = node.alias.value if node.alias else name
            found[key] = _select(inner, node.selection_set, fragments, variables, backend)
        else:
            spread = (
                fragments[node.name.value].selection_set
                if isinstance(node, FragmentSpreadNode)
                else node.selection_set
            )
            found |= _select(value, spread, fragments, variables, backend)
    return found


def _page(nodes: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "totalCount": len(nodes),
        "pageInfo": {"endCursor": None, "hasNextPage": False},
        "edges": [{"node": node, "cursor": str(n)} for n, node in enumerate(nodes)],
    } | more


def _project(name: str) -> dict[str, Any]:
    return {
        "__typename": "Project",
        "id": f"project-{name}",
        "internalId": f"project-{name}",
        "name": name,
        "entity": {"id": f"entity-{ENTITY}", "name": ENTITY},
        "entityName": ENTITY,
        "createdAt": NOW,
        "isBenchmark": False,
        "user": {
            "id": "u",
            "name": "u",
            "username": "u",
            "email": "",
            "admin": False,
            "flags": "{}",
            "entity": ENTITY,
            "deletedAt": None,
            "apiKeys": None,
            "teams": None,
        },
    }


def _bucket(run: Run) -> dict[str, Any]:
    given = run.fields
    return {
        "__typename": "Run",
        "id": f"run-{run.name}",
        "name": run.name,
        "displayName": given.get("displayName"),
        "description": None,
        "notes": None,
        "config": given.get("config"),
        "tags": given.get("tags") or [],
        "group": given.get("groupName"),
        "groupName": given.get("groupName"),
        "jobType": given.get("jobType"),
        "sweepName": None,
        "commit": None,
        "readOnly": False,
        "createdAt": NOW,
        "heartbeatAt": NOW,
        "state": run.state,
        "project": _project(run.project),
        "projectId": 1,
        "user": {"name": "u", "username": "u"},
        "historyLineCount": len(run.history),
        "eventsLineCount": len(run.events),
        "logLineCount": 0,
        "historyTail": json.dumps(run.history[-1:]),
        "eventsTail": json.dumps(run.events[-1:]),
        "historyKeys": {},
        "systemMetrics": "{}",
        "summaryMetrics": json.dumps(run.summary),
        "wandbConfig": lambda keys: json.dumps({"t": 1}),
    }


def _collection(backend: Backend, project: str, name: str) -> dict[str, Any]:
    def membership(aliasName: str) -> Any:
        return _membership(backend, project, f"{name}:{aliasName}")

    return {
        "__typename": "ArtifactSequence",
        "id": f"collection-{name}",
        "name": name,
        "project": _project(project),
        "artifactMembership": membership,
    }


def _artifact(backend: Backend, artifact: Artifact, project: str) -> dict[str, Any]:
    where = _collection(backend, project, artifact.collection)

    def files(**_: Any) -> Any:
        return _page([_file(backend, path, e) for path, e in artifact.entries.items()])

    return {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": where | {"latestArtifact": lambda: _latest(backend, artifact)},
        "versionIndex": artifact.version,
        "artifactType": {"name": artifact.type},
        "description": artifact.description,
        "metadata": artifact.metadata,
        "ttlDurationSeconds": -1,
        "ttlIsInherited": True,
        "tags": [],
        "historyStep": None,
        "state": artifact.state,
        "size": str(sum(e.get("size") or 0 for e in artifact.entries.values())),
        "digest": artifact.digest,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": artifact.id,
        "fileCount": len(artifact.entries),
        "createdAt": NOW,
        "updatedAt": NOW,
        "aliases": [
            {"__typename": "ArtifactAlias", "id": a, "alias": a, "artifactCollection": where}
            for a in sorted(artifact.aliases)
        ],
        "files": files,
        "currentManifest": {"file": {"directUrl": f"{backend.url}/manifests/{artifact.id}"}},
    }


def _latest(backend: Backend, artifact: Artifact) -> dict[str, str] | None:
    same = [a for a in backend.artifacts.values() if a.collection == artifact.collection]
    done = [a for a in same if a.state == "COMMITTED"]
    return {"id": done[-1].id} if done else None


def _file(backend: Backend, path: str, entry: dict[str, Any]) -> dict[str, Any]:
    place = base64.b64decode(entry["digest"]).hex() if "ref" not in entry else ""
    url = f"{backend.url}/blob/{place}"
    return {
        "__typename": "File",
        "id": path,
        "name": path,
        "displayName": path,
        "url": url,
        "directUrl": url,
        "sizeBytes": entry.get("size"),
        "storagePath": path,
        "mimetype": "",
        "updatedAt": None,
        "digest": entry["digest"],
        "md5": entry["digest"],
    }


def _membership(backend: Backend, project: str, name: str) -> dict[str, Any] | None:
    collection, _, wanted = name.split("/")[-1].partition(":")
    wanted = wanted or "latest"
    for artifact in reversed(backend.artifacts.values()):
        known = {f"v{artifact.version}", artifact.digest, *artifact.aliases}
        if artifact.collection == collection and wanted in known and artifact.manifest:
            shown = _artifact(backend, artifact, project)
            return {
                "__typename": "ArtifactCollectionMembership",
                "id": artifact.id,
                "versionIndex": artifact.version,
                "createdAt": NOW,
                "aliases": shown["aliases"],
                "artifactCollection": shown["artifactSequence"],
                "artifact": shown,
                "files": shown["files"],
            }
    return None


def _project_of(backend: Backend, name: str, entityName: str | None = None) -> Any:
    """Return a project with all that the reading API asks it for."""

    def runs(filters: str | None = None, **_: Any) -> Any:
        wanted = json.loads(filters or "{}")
        return _page([_run_of(backend, r) for r in mine if _passes(r, wanted)])

    def run(name: str) -> Any:
        return _run_of(backend, backend.runs[name]) if name in backend.runs else None

    def member(name: str) -> Any:
        return _membership(backend, project, name)

    def collection(name: str) -> Any:
        known = any(a.collection == name for a in backend.artifacts.values())
        return _collection(backend, project, name) if known else None

    def views(viewType: str = "runs", viewName: str | None = None, **_: Any) -> Any:
        found = [view for view in backend.views.values() if view["type"] == viewType]
        return _page([view for view in found if viewName in (None, view["name"])])

    project = name
    mine = [r for r in backend.runs.values() if r.project == project]
    if entityName not in (None, "", *backend.entities):
        return None
    return _project(project) | {
        "runs": runs,
        "runCount": lambda filters=None: len(runs(filters)["edges"]),
        "readOnly": False,
        "run": run,
        "bucket": lambda name, missingOk=False: run(name),
        "artifact": lambda name: (member(name) or {}).get("artifact"),
        "artifactCollectionMembership": member,
        "artifactCollection": collection,
        "allViews": views,
    }


def _passes(run: Run, wanted: dict[str, Any]) -> bool:
    """Whether a run is among those that are filtered for, as far as we filter."""
    if "$and" in wanted:
        return all(_passes(run, part) for part in wanted["$and"])
    if "$or" in wanted:
        return any(_passes(run, part) for part in wanted["$or"])
    known = {
        "group": run.fields.get("groupName"), "jobType": run.fields.get("jobType"),
        "job_type": run.fields.get("jobType"), "name": run.name,
    }  # fmt: skip
    return all(known.get(name) == value for name, value in wanted.items() if name in known)


def _run_of(backend: Backend, run: Run) -> dict[str, Any]:
    def linked(ids: list[str]) -> Callable[..., Any]:
        return lambda **_: _page(
            [_artifact(backend, backend.artifacts[i], run.project) for i in ids]
        )

    def files(names: list[str] | None = None, **_: Any) -> Any:
        return _page(
            [{"name": n, "sizeBytes": len(b)} for n, b in run.files.items()
             if not names or n in names]
        )  # fmt: skip

    return _bucket(run) | {
        "outputArtifacts": linked(run.logged),
        "inputArtifacts": linked(run.used),
        "files": files,
    }


def _upsert_bucket(backend: Backend, input: dict[str, Any]) -> Any:
    name, project = input["name"], input.get("modelName") or "uncategorized"
    if input.get("entityName") not in (None, "", *backend.entities):
        raise Refused(f"entity {input['entityName']} not found during upsertBucket")
    if name in backend.deleted:
        raise Refused(f"run {ENTITY}/{project}/{name} was previously created and deleted")
    inserted = name not in backend.runs
    run = backend.runs.setdefault(name, Run(name, project))
    run.fields |= {key: value for key, value in input.items() if value is not None}
    if input.get("summaryMetrics"):
        run.summary = json.loads(input["summaryMetrics"])
    if run.state != "running":  # it is gone on with
        run.state, run.preempting = "running", False
    return {"bucket": _bucket(run), "inserted": inserted}


def _create_run_files(backend: Backend, input: dict[str, Any]) -> Any:
    name = input["runName"]
    files = [
        {"name": n, "uploadUrl": f"{backend.url}/run-files/{name}/{n}"} for n in input["files"]
    ]
    return {"runID": f"run-{name}", "uploadHeaders": [], "files": files}


def _create_artifact(backend: Backend, input: dict[str, Any]) -> Any:
    collection = input.get("artifactCollectionName") or input["artifactCollectionNames"][0]
    same = [a for a in backend.artifacts.values() if a.collection == collection]
    run = backend.runs.get(input.get("runName") or "")
    found = next((a for a in same if a.digest == input["digest"] and a.manifest), None)
    if found is None:
        number = len(backend.artifacts) + 1
        found = Artifact(
            id=base64.b64encode(f"Artifact:{number}".encode()).decode(),
            collection=collection,
            type=input["artifactTypeName"],
            digest=input["digest"],
            client_id=input["clientID"],
            version=len(same),
            description=input.get("description"),
            metadata=input.get("metadata"),
            run=input.get("runName") or "",
        )
        backend.artifacts[found.id] = found
    given = {alias["alias"] for alias in input.get("aliases") or ()}
    for other in same:
        other.aliases -= given
    found.aliases |= given
    if run is not None and found.id not in run.logged:
        run.logged.append(found.id)
    return {"artifact": _artifact(backend, found, run.project if run else "")}


def _create_artifact_files(backend: Backend, input: dict[str, Any]) -> Any:
    nodes = [
        {
            "storagePath": spec["name"],
            "uploadUrl": f"{backend.url}/blobs/{spec['artifactID']}/{spec['name']}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": spec["artifactID"]},
        }
        for spec in input["artifactFiles"]
    ]
    return {"files": _page(nodes)}


def _manifest_of(backend: Backend, artifact: str, digest: str) -> Any:
    url = f"{backend.url}/manifests/{artifact}" if digest else None
    file = {"id": f"file-{artifact}", "uploadUrl": url, "uploadHeaders": []}
    return {"artifactManifest": {"id": artifact, "file": file}}


def _commit(backend: Backend, input: dict[str, Any]) -> Any:
    artifact = backend.artifacts[input["artifactID"]]
    artifact.state = "COMMITTED"
    same = [a for a in backend.artifacts.values() if a.collection == artifact.collection]
    for other in same:
        other.aliases.discard("latest")
    artifact.aliases.add("latest")
    return {"artifact": {"id": artifact.id, "digest": artifact.digest}}


def _use_artifact(backend: Backend, input: dict[str, Any]) -> Any:
    run = backend.runs[input["runName"]]
    if input["artifactID"] not in run.used:
        run.used.append(input["artifactID"])
    return {"artifact": {"id": input["artifactID"]}}


def _alert(backend: Backend, input: dict[str, Any]) -> Any:
    backend.runs[input["runName"]].alerts.append(input)
    return {"success": True}


def _upsert_view(backend: Backend, input: dict[str, Any]) -> Any:
    key = input.get("id") or f"{input.get('type')}:{input.get('name') or len(backend.views)}"
    user = {"username": "u", "photoUrl": None, "email": ""}
    view = backend.views.setdefault(
        key, {"createdAt": NOW, "updatedAt": NOW, "user": user, "previewUrl": None}
    )
    view |= {name: value for name, value in input.items() if value is not None}
    view |= {"id": key, "project": _project(input["projectName"])}
    return {"view": view, "inserted": True}


def _client_mapping(backend: Backend, clientID: str) -> Any:
    found = next((a.id for a in backend.artifacts.values() if a.client_id == clientID), None)
    return {"serverID": found}


QUERIES: dict[str, Callable[..., Any]] = {
    "viewer": lambda backend: {
        "id": "u", "entity": backend.entities[0], "username": "u", "email": "", "flags": "{}",
        "teams": _page([{"name": name} for name in backend.entities]), "name": "u",
    },
    "serverInfo": lambda backend: {
        "features": [],
        "cliVersionInfo": {"max_cli_version": "9.9.9", "min_cli_version": backend.min_sdk},
        "latestLocalVersionInfo": None,
    },
    "model": _project_of,
    "models": lambda backend, entityName=None, **_: _page(
        [_project(name) for name in dict.fromkeys(r.project for r in backend.runs.values())]
    ),
    "project": _project_of,
    "entity": lambda backend, name: (
        {"id": name, "name": name, "organization": None} if name in backend.entities else None
    ),
    "artifact": lambda backend, id: _artifact(backend, backend.artifacts[id], ""),
    "clientIDMapping": _client_mapping,
    "organization": lambda backend, name=None: None,
    "view": lambda backend, id=None, **_: backend.views.get(id or ""),
}  # fmt: skip

MUTATIONS: dict[str, Callable[..., Any]] = {
    "upsertBucket": _upsert_bucket,
    "createRunFiles": _create_run_files,
    "createArtifact": _create_artifact,
    "createArtifactFiles": _create_artifact_files,
    "commitArtifact": _commit,
    "createArtifactManifest": lambda backend, input: _manifest_of(
        backend, input["artifactID"], input["digest"]
    ),
    "updateArtifactManifest": lambda backend, input: _manifest_of(
        backend, input["artifactManifestID"], input.get("digest") or "x"
    ),
    "useArtifact": _use_artifact,
    "notifyScriptableRunAlert": _alert,
    "upsertView": _upsert_view,
    "upsertModel": lambda backend, input: {"model": _project(input["name"]), "inserted": True},
}
