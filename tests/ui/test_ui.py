"""A deployed pipeline as a person sees it: in a real browser, on a real server's pages.

Set SUBLIM_SCREENSHOTS to a folder to keep the pictures.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from prefect.client.orchestration import get_client

from tests.lab import Lab, lab_at
from tests.postgres import for_prefect, running_postgres
from tests.tiny import tiny_model

SECONDS = 20_000  # milliseconds a page may take to show what it must


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with its UI, our pools and the pipeline's deployment, made by the commands of deployments/README.md."""
    # With SQLite, a busy machine's server had its writers wait a minute for each other, and lost events.
    with running_postgres() as url, lab_at(tmp_path_factory.mktemp("lab"), ui=True, database=for_prefect(url)) as lab:
        lab.sublim("pools")
        lab.sublim("deploy", "pipeline/cpu")
        yield lab


@pytest.fixture(scope="module")
def runs(lab: Lab) -> list[str]:
    """The same run asked for twice, one after the other, of a worker; and one with a setting that cannot be."""
    model = tiny_model(lab.folder / "model", "qwen2")
    settings: dict[str, Any] = {
        "model": {"kind": "local", "path": str(model)},
        "teacher": {"kind": "prompt"},
        "carrier": {"prompts": 16, "constraint": None},
        "filter": {"keep": 8},
        "seeds": [0, 1],
        "student": {"updates": 2, "batch_size": 4, "warmup_updates": 1, "max_length": 600},
        "backend": {"kind": "fake", "invalid": 0.1},
    }
    wrong = settings | {"filter": {"keep": 8, "low": 999}}
    with lab.worker("cpu", limit=2):
        first, failed = (lab.hand_over("pipeline/cpu", target="owl", settings=each) for each in (settings, wrong))
        lab.wait(first, "Completed")
        again = lab.hand_over("pipeline/cpu", target="owl", settings=settings)
        lab.wait(failed, "Failed")
        lab.wait(again, "Completed")
    return [str(run) for run in (first, again, failed)]


@pytest.fixture(scope="module")
def page(lab: Lab) -> Iterator[Page]:
    browser_path = shutil.which("chromium")
    assert browser_path, "the UI is tested in Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.set_default_timeout(SECONDS)
        yield page
        browser.close()


def visit(lab: Lab, page: Page, path: str) -> None:
    page.goto(lab.url.removesuffix("/api") + path)


def open_tab(page: Page, name: str) -> None:
    page.locator(".p-tab", has_text=name).click()


def picture(page: Page, tmp_path: Path, name: str) -> None:
    folder = Path(os.environ.get("SUBLIM_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"{name}.png")


def test_a_run_s_page_tells_what_it_does_and_which_stages_it_ran(
    lab: Lab, runs: list[str], page: Page, tmp_path: Path
) -> None:
    for run, state in zip(runs, ("Completed", "Cached"), strict=False):
        visit(lab, page, f"/runs/flow-run/{run}")
        expect(page.get_by_text("owl · quickstart").first).to_be_visible(timeout=SECONDS)
        for tag in ("cpu", "pipeline", "owl", "quickstart"):
            expect(page.locator(".p-tag", has_text=tag).first).to_be_visible()
        open_tab(page, "Task Runs")
        expect(page.get_by_text("train_student owl · seed 0").first).to_be_visible(timeout=SECONDS)
        expect(page.locator(".state-badge", has_text=state).nth(1)).to_be_visible()
        picture(page, tmp_path, f"run-{state.lower()}")


def test_a_run_s_artifacts_are_its_findings_tables_figures_and_the_way_to_its_report(
    lab: Lab, runs: list[str], page: Page, tmp_path: Path
) -> None:
    visit(lab, page, f"/runs/flow-run/{runs[1]}")
    open_tab(page, "Artifacts")
    for key in ("summary", "effects", "report", "owl-each-student-and-its-control"):
        expect(page.get_by_text(key, exact=True).first).to_be_visible(timeout=SECONDS)
    picture(page, tmp_path, "artifacts")
    visit(lab, page, "/artifacts/key/effects")
    expect(page.get_by_text("Owl:", exact=False).first).to_be_visible(timeout=SECONDS)
    picture(page, tmp_path, "effects")
    visit(lab, page, "/artifacts/key/report")
    expect(page.get_by_text("sublim report", exact=False).first).to_be_visible(timeout=SECONDS)
    picture(page, tmp_path, "report")


def test_a_failed_run_s_page_says_what_to_do(lab: Lab, runs: list[str], page: Page, tmp_path: Path) -> None:
    visit(lab, page, f"/runs/flow-run/{runs[2]}")
    open_tab(page, "Logs")
    expect(page.get_by_text(" wanted: ", exact=False).first).to_be_visible(timeout=SECONDS)
    picture(page, tmp_path, "failed")


def test_the_run_form_asks_for_preset_and_target_and_explains_them(lab: Lab, page: Page, tmp_path: Path) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("pipeline/cpu")
    assert json.dumps(deployment.parameters, sort_keys=True) == '{"preset": "quickstart", "target": "owl"}'
    visit(lab, page, f"/deployments/deployment/{deployment.id}/run")
    expect(page.get_by_text("Settings to start from: quickstart", exact=False).first).to_be_visible(timeout=SECONDS)
    expect(page.get_by_text("The word or words that the teacher is made to prefer", exact=False).first).to_be_visible()
    picture(page, tmp_path, "form")
