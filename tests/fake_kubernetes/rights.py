"""Who may do what: users by bearer token, with rules as in a Role."""

from dataclasses import dataclass, field


@dataclass
class Rule:
    """A rule of a Role. `*` stands for all."""

    groups: list[str]
    resources: list[str]
    verbs: list[str]
    namespaces: list[str] = field(default_factory=lambda: ["*"])
    names: list[str] = field(default_factory=lambda: ["*"])

    def allows(self, verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        asked = (
            (self.groups, group),
            (self.resources, resource),
            (self.verbs, verb),
            (self.namespaces, namespace),
            (self.names, name),
        )
        return all("*" in allowed or wanted in allowed for allowed, wanted in asked)


@dataclass
class User:
    """Somebody who calls the API.

    Attributes:
        name: As it stands in a refusal.
        rules: What it may do; change them in a test.
        used: What it has done, as verb, group and resource.
    """

    name: str
    rules: list[Rule]
    used: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])

    def may(self, verb: str, group: str, resource: str, namespace: str, name: str = "") -> bool:
        return any(rule.allows(verb, group, resource, namespace, name) for rule in self.rules)

    def take_away(self, resource: str, verb: str | None = None) -> None:
        """Take a right away, as if it were missing in the Role."""
        for rule in self.rules:
            if resource in rule.resources and (verb is None or verb in rule.verbs):
                split = [r for r in rule.resources if r != resource]
                if verb is not None:
                    kept = [v for v in rule.verbs if v != verb]
                    self.rules.append(Rule(rule.groups, [resource], kept, rule.namespaces))
                rule.resources = split
                return
        raise AssertionError(f"{self.name} has no right to {verb} {resource}")


def of_a_worker() -> list[Rule]:
    """Return what the worker needs; `deployment-templates/kuberay-per-run/` grants the same."""
    return [
        Rule(["ray.io"], ["rayclusters"], ["create", "get", "list", "patch", "delete"]),
        Rule([""], ["pods"], ["list"]),
        Rule([""], ["events"], ["list"]),
        Rule([""], ["pods/log"], ["get"]),
        Rule([""], ["services/proxy"], ["get", "create", "update", "delete"]),
        Rule([""], ["secrets"], ["get"]),
    ]


def of_an_administrator() -> list[Rule]:
    return [Rule(["*"], ["*"], ["*"])]
