"""What the documentation shows as code works: it parses, its names exist, its values are taken."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from cyclopts import CycloptsError
from prefect.cli._app import _app

import prefect_ray_worker
from prefect_ray_worker import metrics
from prefect_ray_worker.adhoc.decorator import RayJobVariables
from prefect_ray_worker.commands.app import app, parse
from prefect_ray_worker.config.cluster_source import over_pool_default
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.doctor.report import CheckSubject, Grade
from tests.docs.test_docs import PAGES, README, ROOT

_BLOCK = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LANGUAGES = {"mermaid", "console", "python", "yaml", "json", "dockerfile", "toml", "text", ""}
# Programs that are not ours; that they are written right is theirs to say.
_OTHERS = {
    "#", ".", "bash", "cat", "cd", "cp", "curl", "docker", "echo", "export", "git", "grep",
    "helm", "install", "kind", "kubectl", "make", "mkdir", "openssl", "pip", "prefect",
    "prefect-ray-worker", "python", "python3", "python3.11", "ray", "rm", "runuser", "sed", "set",
    "source", "systemctl", "tail", "terraform", "useradd", "uv",
}  # fmt: skip

# A deployment may set single fields of its pool's cluster.
_POOL = {"variables": {"properties": {"kuberay": {"default": {"image": "example/ray:2.60.0"}}}}}


class Snippet(NamedTuple):
    page: Path
    language: str
    text: str


def snippets() -> list[Snippet]:
    pages = [*PAGES, *sorted((ROOT / "deployment-templates").rglob("*.md"))]
    found: list[Snippet] = []
    for page in pages:
        for indent, language, text in _BLOCK.findall(page.read_text()):
            lines = (line.removeprefix(indent) for line in text.splitlines())
            found.append(Snippet(page, language, "\n".join(lines) + "\n"))
    return found


def of(*languages: str) -> list[Any]:
    return [
        pytest.param(snippet, id=f"{snippet.page.relative_to(ROOT)}-{number}")
        for number, snippet in enumerate(snippets())
        if snippet.language in languages
    ]


def commands(snippet: Snippet) -> list[str]:
    """Return what is typed at a prompt, continued lines joined, comments and output left out."""
    # What stands for something that the reader has: any id will do.
    text = snippet.text.replace("<flow run id>", "00000000-0000-0000-0000-000000000000")
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    prompt = "# " if lines[0].startswith("# ") else "$ "
    if snippet.page == README and not any(line.startswith(prompt) for line in lines):
        prompt = ""  # a block to copy as a whole
    typed = [line.removeprefix(prompt) for line in lines if line.startswith(prompt)]
    without_comments = (re.sub(r"(^|\s+)#.*$", "", command).strip() for command in typed)
    return [re.sub(r"\$\([^)]*\)", "it", command) for command in without_comments if command]


def test_every_block_says_what_it_is() -> None:
    unknown = {(s.page.name, s.language) for s in snippets() if s.language not in _LANGUAGES}
    assert unknown == set()


@pytest.mark.parametrize("snippet", of("python"))
def test_python_compiles_and_its_imports_exist(snippet: Snippet) -> None:
    tree = ast.parse(snippet.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.partition(".")[0] == "prefect_ray":
                continue  # the other package, shown to be replaced
            if list((ROOT / "docs" / "examples").glob(f"*/{node.module}.py")):
                continue  # a module beside the notebook, or of an example
            module = importlib.import_module(node.module)
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []


@pytest.mark.parametrize("snippet", of("python"))
def test_python_calls_us_with_arguments_that_exist(snippet: Snippet) -> None:
    if "from prefect_ray import" in snippet.text:
        return
    for node in ast.walk(ast.parse(snippet.text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id not in prefect_ray_worker.__all__:
            continue
        thing = getattr(prefect_ray_worker, node.func.id)
        given = {keyword.arg for keyword in node.keywords if keyword.arg}
        if node.func.id == "RayCluster":
            assert given <= set(thing.model_fields)
        elif node.func.id == "remote_options":
            thing(**{k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg})
        else:
            taken = set(inspect.signature(thing).parameters)
            if "job_variables" in taken:
                taken |= set(RayJobVariables.__annotations__)
            assert given <= taken, given


# YAML contains JSON.
@pytest.mark.parametrize("snippet", of("yaml", "json"))
def test_yaml_parses_and_its_job_variables_are_taken(snippet: Snippet) -> None:
    for document in yaml.safe_load_all(snippet.text):
        for given in job_variables(document):
            variables = over_pool_default(_POOL, given)
            RayJobConfiguration.model_validate(
                {key: value for key, value in variables.items() if key != "cluster"}
            )


def job_variables(document: Any) -> list[dict[str, Any]]:
    """Return every mapping of job variables in a document."""
    if isinstance(document, list):
        return [found for item in document for found in job_variables(item)]
    if not isinstance(document, dict):
        return []
    own = [document["job_variables"]] if isinstance(document.get("job_variables"), dict) else []
    return own + [found for item in document.values() for found in job_variables(item)]


@pytest.mark.parametrize("snippet", of("console"))
def test_commands_exist_with_their_options(snippet: Snippet) -> None:
    for command in commands(snippet):
        for part in re.split(r"\s+(?:&&|\|\||;|\|)\s+", command):
            words = _words(part)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if "exec" in words[:4] and "--" in words:
                words = words[words.index("--") + 1 :]
            if words:
                check_command(words)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(re.sub(r"<<'?EOF'?$", "", command))
    except ValueError:
        return []  # a quotation that goes on in the next lines


def check_command(words: list[str]) -> None:
    program = Path(words[0]).name
    arguments = [word for word in words[1:] if word not in {"&", "…"}]
    assert program in _OTHERS or (ROOT / words[0]).exists(), words
    if program == "prefect":
        # Its wrapper takes this short form apart before its parser sees it (3.8.8).
        arguments = ["--job-variable" if word == "-jv" else word for word in arguments]
        arguments = [word for word in arguments if word != "--no-prompt"]  # its session's
        _app.parse_args(arguments, exit_on_error=False, print_error=False)
    elif program == "prefect-ray-worker" and "--version" not in arguments:
        parse(app(), arguments)
    elif program == "make":
        targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
        named = {word for word in arguments if re.fullmatch(r"[a-z][a-z-]*", word)}
        assert named <= targets, named


@pytest.mark.parametrize("snippet", of("console"))
def test_secret_does_not_get_the_line_feed_of_a_file(snippet: Snippet) -> None:
    """Prefect 3.8.8 sends it with the key: `Illegal header value`."""
    assert [
        one for one in commands(snippet) if "create secret" in one and "--from-file" in one
    ] == []


def test_mistake_in_a_command_is_found() -> None:
    with pytest.raises(Exception, match="poool"):
        check_command(["prefect", "worker", "start", "--poool", "x"])
    with pytest.raises(CycloptsError):
        check_command(["prefect-ray-worker", "doctr"])


def test_output_of_the_doctor_is_as_it_prints() -> None:
    page = ROOT / "docs" / "how-to" / "examine-a-cluster.md"
    shown = next(s.text for s in snippets() if s.page == page and "\nok " in s.text)
    lines = shown.splitlines()[1:-1]
    parsed = [re.fullmatch(r"(\w+) +([\w-]+): .+", line) for line in lines]
    assert all(parsed)
    assert [match[2] for match in parsed if match] == [subject.label for subject in CheckSubject]
    counts = [
        f"{count} {grade.label}"
        for grade in Grade
        if (count := sum(match[1] == grade.label for match in parsed if match))
    ]
    assert shown.splitlines()[-1] == ", ".join(counts)


@pytest.mark.parametrize("snippet", of("yaml"))
def test_alert_names_metrics_and_labels_that_exist(snippet: Snippet) -> None:
    """An alert on a label that no metric has never fires."""
    known = {metric.describe()[0].name: metric._labelnames for metric in metrics.ALL}
    for expression in re.findall(r"^\s*expr: (.+)$", snippet.text, re.MULTILINE):
        named = [name for name in known if name in expression]
        assert named, expression
        labels = re.findall(r"\bby \((\w+)\)", expression) + re.findall(r"(\w+)=~?\"", expression)
        assert set(labels) <= set(known[named[0]]), expression
