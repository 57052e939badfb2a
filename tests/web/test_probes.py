"""The recipes for Kubernetes and Prometheus in docs/scaling.md: a hub started with their flags answers their probes."""

from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]

from sse_app import Config
from tests.test_cli import KEY, get, serving, url_in
from tests.test_docs import blocks

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
POD = "127.0.0.2"  # an address of this machine that is no loopback name of the hub, as that of a pod
DEPLOYMENT, SCRAPING = (yaml.safe_load(block.text) for block in blocks(PAGE) if block.language == "yaml")
POD_SPEC = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD_SPEC["containers"][0]


def replaced(arguments: list[str], **options: str) -> list[str]:
    """The arguments with other values for these options."""
    result = list(arguments)
    for name, value in options.items():
        result[result.index(f"--{name}") + 1] = value
    return result


def test_the_probes_and_the_scraper_get_their_answers() -> None:
    program, command, *arguments = replaced(CONTAINER["args"], broker="memory://")
    assert (program, command) == ("sse-app", "serve")
    assert [variable["name"] for variable in CONTAINER["env"]] == ["SSE_APP_PUBLISH_KEY"]
    paths = [CONTAINER[name]["httpGet"]["path"] for name in ("readinessProbe", "livenessProbe")]
    paths += [job["metrics_path"] for job in SCRAPING["scrape_configs"]]
    with serving(command, *arguments, "--port", "0", SSE_APP_PUBLISH_KEY=KEY) as (_, lines):
        port = httpx.URL(url_in(lines)).port
        for path in paths:
            assert get(f"http://{POD}:{port}{path}").status_code == 200, path
        assert get(f"http://{POD}:{port}/metrics", headers={"Host": "hub.example"}).status_code == 421


def test_ports_labels_and_times_fit_together() -> None:
    ports = {CONTAINER["ports"][0]["containerPort"], Config().port}
    ports |= {CONTAINER[name]["httpGet"]["port"] for name in ("readinessProbe", "livenessProbe")}
    assert len(ports) == 1
    assert POD_SPEC["terminationGracePeriodSeconds"] > Config().drain + 2
    (rule,) = SCRAPING["scrape_configs"][0]["relabel_configs"]
    assert rule["regex"] == DEPLOYMENT["spec"]["template"]["metadata"]["labels"]["app"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
