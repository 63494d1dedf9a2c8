"""A real Prometheus scrapes the hosts; the gate asks it, and gives the verdict that the files give."""

import ipaddress
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.conftest import Lab
from tests.end_to_end.test_stage1 import HOSTS, assert_nothing_was_lost, loaded

pytestmark = [pytest.mark.lab, pytest.mark.full]  # a busy machine scrapes late, and late is NO_DATA

PORT, COLLECTOR_PORT = 9590, 8471
SCRAPE_INTERVAL = "500ms"  # the lab's collector reads as often
OBSERVED_S = 40  # a week, on the lab's time scale, and some


@contextmanager
def scraping(lab: Lab, folder: Path) -> Iterator[str]:
    """A Prometheus on this machine that scrapes the lab's collectors, where the lab's hosts reach it."""
    server = shutil.which("prometheus")
    assert server is not None, "make setup installs Debian's package prometheus"
    hosts = yaml.safe_load((lab.inventory / "hosts.yml").read_text())
    addresses = {name: hosts["all"]["hosts"][name]["ansible_host"] for name in HOSTS}
    bridge = next(ipaddress.ip_network(f"{addresses['one']}/24", strict=False).hosts())
    config = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": SCRAPE_INTERVAL},
        "scrape_configs": [
            {
                "job_name": "cfn",
                "static_configs": [
                    {
                        "targets": [f"{address}:{COLLECTOR_PORT}"],
                        "labels": {"instance": f"{name}:{COLLECTOR_PORT}"},
                    }
                    for name, address in addresses.items()
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [server, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address={bridge}:{PORT}", "--log.level=error"]
    )  # fmt: skip
    url = f"http://{bridge}:{PORT}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=1).close()  # noqa: S310
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def verdict(lab: Lab, *arguments: str) -> dict[str, Any]:
    """What the gate says, from the ledger's newest verdict."""
    played = lab.play("gate.yml", *arguments)
    assert played.returncode in (0, 10, 11, 12), played.output
    records = lab.cfn("one", "ledger", "show", "--last", "1")["records"]
    assert records[0]["kind"] == "verdict", played.output
    found: dict[str, Any] = records[0]["data"]["verdict"]
    return found


def test_files_and_a_prometheus_that_scrapes_the_hosts_give_the_same_verdict(
    pair: Lab, tmp_path: Path
) -> None:
    listening = ("-e", "engine_metrics_listen=0.0.0.0")
    with scraping(pair, tmp_path) as url:
        for traffic in ("8", "9"):  # what is proved counts from the flip: by the second one it is scraped
            played = pair.play("stage1.yml", "-e", f"traffic={traffic}", *listening)
            assert played.returncode == 0, played.output
        with loaded(pair) as reports:
            time.sleep(OBSERVED_S)
            until = (datetime.now(UTC) - timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            window = ("-e", f"gate_until={until}")
            from_files = verdict(pair, *window)
            source = ("-e", "gate_source=prometheus", "-e", f"gate_prometheus_url={url}")
            asked = verdict(pair, *window, *source)
    assert_nothing_was_lost(reports)
    assert pair.play("stage1.yml").returncode == 0  # the collectors listen to their own hosts only again

    assert asked["verdict"] == from_files["verdict"], (asked["reasons"], from_files["reasons"])
    by_name = {each["name"]: each["verdict"] for each in from_files["results"]}
    assert {each["name"]: each["verdict"] for each in asked["results"]} == by_name
    assert len(by_name) > 5
    requests = [each["observed"]["v1_requests"] for each in (from_files, asked)]
    # A scrape sees a request up to one interval later, so the ends of the window may differ by that much.
    assert requests[0] > 50
    assert abs(requests[1] - requests[0]) <= 0.1 * requests[0], requests
