"""`Kubelet`: the lives of pods, from the scheduler to their end, and what runs in head pods."""

import asyncio
import base64
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fake_kubernetes.heads import Head, Heads
from tests.fake_kubernetes.scripts import Script, Scripts
from tests.fake_kubernetes.store import Document, Store, now

_BACK_OFF_SECONDS = 0.1
_NOT_READY = "containers with unready status: [ray-head]"
_STARTED = "INFO scripts.py -- Local node IP: 10.0.0.1\nINFO scripts.py -- Ray runtime started.\n"


@dataclass
class _Run:
    """What runs in one pod."""

    head: Head | None = None
    starting: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    started_at: float | None = None
    crashed_at: float | None = None
    restarts: int = 0
    last_end: Document | None = None
    logs: list[str] = field(default_factory=list[str])


class Kubelet:
    """Runs all pods of a fake cluster.

    Args:
        store: The pods and secrets.
        scripts: What goes wrong.
        heads: What starts a Ray.

    Attributes:
        stop_seconds: How long a pod takes to end.
    """

    def __init__(self, store: Store, scripts: Scripts, heads: Heads) -> None:
        self._store = store
        self._scripts = scripts
        self._heads = heads
        self._runs: dict[str, _Run] = {}
        self.stop_seconds = 0.0

    def run_all(self) -> None:
        """Do one round."""
        pods = self._store.all("pods")
        for pod in pods:
            if "deletionTimestamp" in pod["metadata"]:
                self._end(pod)
            elif pod.get("status", {}).get("phase") not in ("Failed", "Succeeded"):
                self._run(pod)
        gone = self._runs.keys() - {pod["metadata"]["uid"] for pod in pods}
        for uid in gone:  # deleted by force
            run = self._runs[uid]
            if run.ending is None:
                run.ending = asyncio.create_task(self._stop(run))

    async def stop(self) -> None:
        """End all that runs."""
        await asyncio.gather(*(self._stop(run) for run in self._runs.values()))
        self._runs.clear()

    def address_of(self, uid: str) -> str | None:
        """Return where Ray listens in a pod; None if it does not."""
        run = self._runs.get(uid)
        return run.head.address if run is not None and run.head is not None else None

    def log_of(self, pod: Document, *, previous: bool) -> str | None:
        """Return the log of a pod's container; None if there is none."""
        run = self._runs.get(pod["metadata"]["uid"])
        logs = run.logs if run is not None else []
        if previous:
            return logs[-2] if len(logs) > 1 else None
        return logs[-1] if logs else None

    async def kill_head(self, namespace: str, cluster: str, *, evicted: bool = False) -> None:
        """End the Ray of a cluster's head.

        Its container is started again, with a new Ray; evicted (or with `restartPolicy: Never`),
        the pod fails, and the operator makes another.
        """
        pod = next(
            pod
            for pod in self._store.all("pods", namespace)
            if pod["metadata"]["labels"].get("ray.io/cluster") == cluster and _is_head(pod)
        )
        run = self._runs[pod["metadata"]["uid"]]
        head, run.head = run.head, None
        if head is not None:
            await head.stop()
        never = pod["spec"].get("restartPolicy") == "Never"
        if evicted or never:
            reason = "Evicted" if evicted else "Error"
            message = "The node was low on resource: memory." if evicted else ""
            self._set(pod, "Failed", {"reason": reason, "message": message}, ready=False)
        else:
            self._crash(run, self._scripts.of(cluster))

    def _run(self, pod: Document) -> None:
        script = self._scripts.of(pod["metadata"].get("labels", {}).get("ray.io/cluster", ""))
        run = self._runs.setdefault(pod["metadata"]["uid"], _Run())
        if script.spares_head and _is_head(pod):
            script = replace(script, unschedulable=None, image=None)
        if script.unschedulable is not None and run.started_at is None:
            condition = _condition("PodScheduled", "False", "Unschedulable", script.unschedulable)
            self._store_status(pod, {"phase": "Pending", "conditions": [condition]})
            return
        if run.started_at is None:
            waiting = self._reason_to_wait(pod, script)
            if waiting is not None:
                self._set(pod, "Pending", {}, waiting=waiting)
                return
            self._start(pod, run, script)
        elif run.crashed_at is not None and _seconds_since(run.crashed_at) >= _BACK_OFF_SECONDS:
            self._start(pod, run, script)
        if run.crashed_at is not None:
            self._set(pod, "Running", {}, waiting=self._back_off(pod))
            return
        is_up = run.head is not None or not _is_head(pod)
        is_late = _seconds_since(run.started_at or 0.0) >= script.slow
        self._set(pod, "Running", {}, ready=is_up and is_late)

    def _reason_to_wait(self, pod: Document, script: Script) -> dict[str, str] | None:
        if script.image is not None:
            return {"reason": "ImagePullBackOff", "message": script.image}
        missing = _missing_secret(pod, self._store)
        if missing is not None:
            return {"reason": "CreateContainerConfigError", "message": missing}
        return None

    def _back_off(self, pod: Document) -> dict[str, str]:
        name = pod["metadata"]["name"]
        message = f"back-off 10s restarting failed container=ray-head pod={name}"
        return {"reason": "CrashLoopBackOff", "message": message}

    def _start(self, pod: Document, run: _Run, script: Script) -> None:
        run.started_at, run.crashed_at = time.monotonic(), None
        if not _is_head(pod):
            run.logs.append(_STARTED)
            return
        if run.restarts < script.crashes:
            run.logs.append(script.last_words)
            self._crash(run, script)
            return
        run.logs.append(_STARTED)
        cluster = pod["metadata"]["labels"]["ray.io/cluster"]
        run.starting = asyncio.create_task(self._start_head(pod, run, cluster))

    async def _start_head(self, pod: Document, run: _Run, cluster: str) -> None:
        try:
            run.head = await self._heads.start(cluster, _environment(pod, self._store))
        except Exception:
            # A real Ray on a busy machine: its container is started again, as by a real kubelet.
            traceback.print_exc(file=sys.stderr)
            self._crash(run, self._scripts.of(cluster))
        finally:
            run.starting = None

    def _crash(self, run: _Run, script: Script) -> None:
        run.restarts += 1
        run.crashed_at = time.monotonic()
        killed = script.out_of_memory
        reason, code = ("OOMKilled", 137) if killed else ("Error", 1)
        run.last_end = {"reason": reason, "exitCode": code}

    def _end(self, pod: Document) -> None:
        uid = pod["metadata"]["uid"]
        run = self._runs.setdefault(uid, _Run())
        if run.ending is None:
            run.ending = asyncio.create_task(self._stop(run))
        elif run.ending.done():
            del self._runs[uid]
            self._store.forget("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])

    async def _stop(self, run: _Run) -> None:
        if run.starting is not None:
            await run.starting
        await asyncio.sleep(self.stop_seconds)
        head, run.head = run.head, None
        if head is not None:
            await head.stop()

    def _set(
        self,
        pod: Document,
        phase: str,
        more: Document,
        *,
        waiting: dict[str, str] | None = None,
        ready: bool = False,
    ) -> None:
        run = self._runs[pod["metadata"]["uid"]]
        container: Document = {
            "name": pod["spec"]["containers"][0]["name"],
            "ready": ready,
            "restartCount": run.restarts,
            "image": pod["spec"]["containers"][0].get("image", ""),
            "state": {"waiting": waiting} if waiting is not None else {"running": {}},
        }
        if run.last_end is not None:
            container["lastState"] = {"terminated": run.last_end}
        is_ready = (
            _condition("Ready", "True")
            if ready
            else _condition("Ready", "False", "ContainersNotReady", _NOT_READY)
        )
        status: Document = {
            "phase": phase,
            "conditions": [_condition("PodScheduled", "True"), is_ready],
            "containerStatuses": [container],
            **more,
        }
        if phase == "Running":
            status["podIP"] = "10.0.0.1"
        self._store_status(pod, status)

    def _store_status(self, pod: Document, status: Document) -> None:
        before = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
        for condition in status["conditions"]:
            same = before.get(condition["type"], {})
            if same.get("status") == condition["status"]:
                condition["lastTransitionTime"] = same["lastTransitionTime"]
        metadata = pod["metadata"]
        current = pod.get("status", {})
        if current != status:
            dropped = {key: None for key in current if key not in status}
            patch = {"status": {**dropped, **status}}
            self._store.patch("pods", metadata["namespace"], metadata["name"], patch, part="status")


def _seconds_since(moment: float) -> float:
    return time.monotonic() - moment


def _is_head(pod: Document) -> bool:
    return pod["metadata"].get("labels", {}).get("ray.io/node-type") == "head"


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> Document:
    found: Document = {"type": kind, "status": status, "lastTransitionTime": now()}
    if reason:
        found["reason"] = reason
    if message:
        found["message"] = message
    return found


def _secret_references(pod: Document) -> list[tuple[str, str, str]]:
    references: list[tuple[str, str, str]] = []
    for entry in pod["spec"]["containers"][0].get("env", []):
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        if reference is not None:
            references.append((entry["name"], reference["name"], reference["key"]))
    return references


def _missing_secret(pod: Document, store: Store) -> str | None:
    namespace = pod["metadata"]["namespace"]
    for _, name, key in _secret_references(pod):
        secret = store.find("secrets", namespace, name)
        if secret is None:
            return f'secret "{name}" not found'
        if key not in secret.get("data", {}):
            return f"couldn't find key {key} in Secret {namespace}/{name}"
    return None


def _environment(pod: Document, store: Store) -> dict[str, str]:
    entries: list[Any] = pod["spec"]["containers"][0].get("env", [])
    environment = {entry["name"]: str(entry["value"]) for entry in entries if "value" in entry}
    for variable, name, key in _secret_references(pod):
        secret = store.get("secrets", pod["metadata"]["namespace"], name)
        environment[variable] = base64.b64decode(secret["data"][key]).decode()
    return environment
