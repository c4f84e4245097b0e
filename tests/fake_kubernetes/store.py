"""`Store`: the objects of a fake API server, and the rules by which they change and go.

Kubernetes' own: one resourceVersion for all, uids, generation, optimistic locking, finalizers,
owner references, count quotas, terminating namespaces. Observed on 1.36, see the contract suite.
"""

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.fake_kubernetes import statuses

Document = dict[str, Any]
Key = tuple[str, str, str]
FOREGROUND = "foregroundDeletion"
_HAS_STATUS = {"rayclusters", "pods"}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Quota:
    """A ResourceQuota on the number of objects.

    Attributes:
        resource: Such as `rayclusters` or `pods`.
        hard: The most.
    """

    name: str
    resource: str
    hard: int


@dataclass
class Preconditions:
    uid: str | None = None
    resource_version: str | None = None


@dataclass
class Store:
    """The objects, by resource, namespace and name.

    Attributes:
        namespaces: Name to phase, `Active` or `Terminating`.
        quotas: By namespace.
        collect_seconds: How long the garbage collector takes to see a deletion.
        released: Called with a pod that has gone.
    """

    namespaces: dict[str, str] = field(default_factory=lambda: {"ray": "Active"})
    quotas: dict[str, list[Quota]] = field(default_factory=dict)
    collect_seconds: float = 0.0
    _objects: dict[Key, Document] = field(default_factory=dict)
    _versions: Iterator[int] = field(default_factory=lambda: itertools.count(1001))
    _last_version: int = 1000
    _doomed: dict[str, float] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The resourceVersion of the last change to anything."""
        return str(self._last_version)

    def find(self, resource: str, namespace: str, name: str) -> Document | None:
        """Return the object itself, for parts of the fake; None if there is none."""
        return self._objects.get((resource, namespace, name))

    def get(self, resource: str, namespace: str, name: str) -> Document:
        found = self.find(resource, namespace, name)
        if found is None:
            raise statuses.not_found(resource, name)
        return deepcopy(found)

    def all(self, resource: str, namespace: str | None = None) -> list[Document]:
        """Return the objects themselves, in order of their names."""
        of_kind = (
            (where, name, document)
            for (kind, where, name), document in self._objects.items()
            if kind == resource and namespace in (None, where)
        )
        return [document for *_, document in sorted(of_kind, key=lambda found: found[:2])]

    def create(
        self, resource: str, namespace: str, document: Document, *, dry_run: bool = False
    ) -> Document:
        document = deepcopy(document)
        metadata = document.setdefault("metadata", {})
        if "name" not in metadata:
            metadata["name"] = metadata.pop("generateName") + uuid.uuid4().hex[:5]
        name = metadata["name"]
        self._check_namespace(resource, namespace, name)
        there = self.find(resource, namespace, name)
        # The quota is charged before the name is looked up, as admission comes before storage.
        self._check_quota(resource, namespace, name)
        if there is not None:
            terminating = "deletionTimestamp" in there["metadata"]
            raise statuses.already_exists(resource, name, terminating=terminating)
        if resource in _HAS_STATUS:
            document.pop("status", None)
        metadata.update(
            namespace=namespace, uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1
        )
        metadata.pop("deletionTimestamp", None)
        if dry_run:
            return document
        self._stamp(document)
        self._objects[resource, namespace, name] = document
        return deepcopy(document)

    def patch(
        self,
        resource: str,
        namespace: str,
        name: str,
        patch: Document,
        *,
        part: str = "",
        check: Callable[[Document], Document] | None = None,
    ) -> Document:
        """Apply a merge-patch; `part` is `status` for that subresource.

        A patch that changes nothing changes no version.
        """
        before = self.get(resource, namespace, name)
        wanted = patch.get("metadata", {})
        version = wanted.get("resourceVersion")
        if version is not None and version != before["metadata"]["resourceVersion"]:
            raise statuses.conflict(resource, name)
        uid = wanted.get("uid")
        if uid is not None and uid != before["metadata"]["uid"]:
            cause = ("metadata.uid", "FieldValueInvalid", f'Invalid value: "{uid}": ')
            raise statuses.invalid(resource, name, [(*cause[:2], cause[2] + "field is immutable")])
        after = merged(before, patch)
        if resource in _HAS_STATUS:
            kept = "status" if part != "status" else "spec"
            _restore(after, before, kept)
        _restore(after["metadata"], before["metadata"], "deletionTimestamp")
        after = check(after) if check is not None else after
        if after == before:
            return before
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
        self._stamp(after)
        self._objects[resource, namespace, name] = after
        self._finish(resource, namespace, name)
        return deepcopy(after)

    def delete(
        self,
        resource: str,
        namespace: str,
        name: str,
        *,
        policy: str = "Background",
        preconditions: Preconditions | None = None,
        grace: bool = False,
    ) -> Document | None:
        """Delete an object, or mark it; return it if it stays for a while.

        Args:
            policy: `Foreground` waits for the dependents, `Background` does not.
            preconditions: What the object must be.
            grace: Whether somebody (a kubelet) takes the object away when it is done.
        """
        document = self.get(resource, namespace, name)
        metadata = document["metadata"]
        wanted = preconditions or Preconditions()
        if wanted.uid is not None and wanted.uid != metadata["uid"]:
            why = (
                f"Precondition failed: UID in precondition: {wanted.uid}, UID in object meta: "
                f"{metadata['uid']}"
            )
            raise statuses.conflict(resource, name, why)
        version = wanted.resource_version
        if version is not None and version != metadata["resourceVersion"]:
            why = (
                f"the ResourceVersion in the precondition ({version}) does not match the "
                f"ResourceVersion in record ({metadata['resourceVersion']}). The object might "
                "have been modified"
            )
            raise statuses.conflict(resource, name, why)
        if policy == "Foreground" and FOREGROUND not in metadata.get("finalizers", []):
            metadata["finalizers"] = [*metadata.get("finalizers", []), FOREGROUND]
        if not metadata.get("finalizers") and not grace:
            del self._objects[resource, namespace, name]
            self._last_version = next(self._versions)
            return None
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = now()
            metadata["deletionGracePeriodSeconds"] = 30 if grace else 0
            metadata["generation"] = metadata.get("generation", 1) + 1
        if document != self._objects[resource, namespace, name]:
            self._stamp(document)
            self._objects[resource, namespace, name] = document
        return deepcopy(document)

    def forget(self, resource: str, namespace: str, name: str) -> None:
        """Take an object away, whatever holds it; as a kubelet does with a pod that has ended."""
        if self._objects.pop((resource, namespace, name), None) is not None:
            self._last_version = next(self._versions)

    def drop_finalizer(self, resource: str, namespace: str, name: str, finalizer: str) -> None:
        """Take a finalizer off an object, and the object away if it was the last."""
        document = self.find(resource, namespace, name)
        if document is None or finalizer not in document["metadata"].get("finalizers", []):
            return
        document["metadata"]["finalizers"].remove(finalizer)
        self._stamp(document)
        self._finish(resource, namespace, name)

    def collect(self) -> None:
        """Do one round of the garbage collector: dependents of what goes, and orphans."""
        alive = {d["metadata"]["uid"] for d in self._objects.values()}
        for (resource, namespace, name), document in list(self._objects.items()):
            metadata = document["metadata"]
            owners = {o["uid"] for o in metadata.get("ownerReferences", [])}
            if owners and not owners & alive:
                self._doom(resource, namespace, name, metadata["uid"])
            if FOREGROUND not in metadata.get("finalizers", []):
                continue
            dependents = [
                key
                for key, other in self._objects.items()
                if metadata["uid"]
                in {o["uid"] for o in other["metadata"].get("ownerReferences", [])}
            ]
            for key in dependents:
                self._doom(*key, uid=metadata["uid"])
            if not dependents and self._is_time(metadata["uid"]):
                self.drop_finalizer(resource, namespace, name, FOREGROUND)

    def _doom(self, resource: str, namespace: str, name: str, uid: str) -> None:
        document = self.find(resource, namespace, name)
        if document is None or "deletionTimestamp" in document["metadata"]:
            return
        if self._is_time(uid):
            self.delete(resource, namespace, name, grace=resource == "pods")

    def _is_time(self, uid: str) -> bool:
        seen = self._doomed.setdefault(uid, time.monotonic())
        return time.monotonic() - seen >= self.collect_seconds

    def _finish(self, resource: str, namespace: str, name: str) -> None:
        metadata = self._objects[resource, namespace, name]["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            del self._objects[resource, namespace, name]

    def _stamp(self, document: Document) -> None:
        self._last_version = next(self._versions)
        document["metadata"]["resourceVersion"] = str(self._last_version)

    def _check_namespace(self, resource: str, namespace: str, name: str) -> None:
        phase = self.namespaces.get(namespace)
        if phase is None:
            raise statuses.not_found("namespaces", namespace)
        if phase == "Terminating":
            raise statuses.namespace_terminating(resource, name, namespace)

    def _check_quota(self, resource: str, namespace: str, name: str) -> None:
        for quota in self.quotas.get(namespace, []):
            used = len(self.all(resource, namespace)) if quota.resource == resource else 0
            if quota.resource == resource and used >= quota.hard:
                raise statuses.exceeded_quota(resource, name, quota.name, used, quota.hard)


def merged(document: Any, patch: Any) -> Any:
    """Return a document with a JSON merge-patch (RFC 7386) applied."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = deepcopy(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _restore(after: Document, before: Document, key: str) -> None:
    if key in before:
        after[key] = deepcopy(before[key])
    else:
        after.pop(key, None)
