"""A notebook as a person meets it: opened in JupyterLab in a real browser, Run > Run All Cells, saved."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from conftest import wait
from jupyter_server.serverapp import list_running_servers
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as shown
from selenium.webdriver.support.ui import WebDriverWait

from lib import io
from lib.run import workflow
from lib.study import load_study

DEFAULTS = ["data-rich", "d16"]
"""Regime and size of 03_train's default parameters."""
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = 400  # seconds; a busy machine needs many
RUN_ALL, SAVE = ("Run", "runmenu:run-all"), ("File", "docmanager:save")  # menu, and the command of its item
NEWS = "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
SWITCHES = ["headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-dev-shm-usage", "disable-quic"]
SWITCHES += ["disable-background-networking", "disable-sync", "disable-component-update", "window-size=1366,900"]


@dataclass
class Server:
    """A running JupyterLab, and the folder that it shows."""

    url: str
    token: str
    folder: Path

    def get(self, place, token=True, method="get"):
        headers = {"Authorization": f"token {self.token}"} if token else {}
        return requests.request(method, f"{self.url}api/{place}", headers=headers, timeout=30)

    def session(self, notebook):
        """The session of a notebook with its kernel, or None before there is one."""
        return next((session for session in self.get("sessions").json() if session["path"] == notebook), None)


@contextmanager
def server(folder, project):
    """`make lab`, with nobody's settings, showing `folder` and working in `project`. Stopped with its kernels."""
    with tempfile.TemporaryDirectory() as own:
        places = {f"JUPYTER_{name}_DIR": f"{own}/{name.lower()}" for name in ("CONFIG", "DATA", "RUNTIME")}
        places |= {"IPYTHONDIR": f"{own}/ipython", "SCALING_ROOT": str(project)}
        io.write_json(f"{own}/config/{NEWS}", {"fetchNews": "false"})  # or a pop-up asks about them
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        asked = f"--no-browser --ServerApp.root_dir={folder}{' --allow-root' if os.geteuid() == 0 else ''}"
        words = ["make", "--assume-old=.venv/installed", "lab", f"ARGS={asked}"]
        process = subprocess.Popen(words, cwd=io.CODE, env=environment | places, start_new_session=True)

        def started():
            assert process.poll() is None, "make lab ended"
            with suppress(ValueError):  # its file is being written
                return next(list_running_servers(f"{own}/runtime"), None)

        try:
            found = wait(started)
            yield Server(found["url"], found["token"], Path(found["root_dir"]))
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE)
            for left in psutil.wait_procs(family, timeout=PATIENCE)[1]:
                left.kill()


@contextmanager
def browser():
    """A headless Chromium that knows nothing of any earlier one, and has no word for anybody but the server."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory() as own:
        for switch in [*SWITCHES, f"user-data-dir={own}"]:
            options.add_argument(f"--{switch}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        driver.set_page_load_timeout(PATIENCE)
        try:
            yield driver
        finally:
            driver.quit()


def run_all(page, place, path):
    """Open a notebook of the server's folder, press Run > Run All Cells, wait for the kernel, press File > Save.

    Its kernel is shut down, so that kernels do not add up.
    """
    notebook = path.name
    page.get(f"{place.url}lab/tree/{notebook}?reset&token={place.token}")
    WebDriverWait(page, PATIENCE).until(shown.visibility_of_element_located((By.CSS_SELECTOR, ".jp-Notebook .jp-Cell")))
    WebDriverWait(page, PATIENCE).until(shown.invisibility_of_element_located((By.ID, "jupyterlab-splash")))

    def ended():
        rests(place, notebook)
        before = os.stat(path).st_mtime_ns
        press(page, *SAVE)

        def saved():
            with suppress(ValueError):  # half of it is written
                return os.stat(path).st_mtime_ns != before and code(path)

        cells = [cell for cell in wait(saved) if "".join(cell["source"]).strip()]
        failed = any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
        return failed or all(cell["execution_count"] for cell in cells)

    rests(place, notebook)
    press(page, *RUN_ALL)
    wait(ended)
    place.get(f"sessions/{place.session(notebook)['id']}", method="delete")


def rests(place, notebook):
    """Wait until the page is connected to the kernel, and the kernel has been idle at two looks: not between cells."""
    seen = [None]

    def idle():
        kernel = (place.session(notebook) or {"kernel": {"connections": 0}})["kernel"]
        if kernel["connections"] > 0 and kernel["execution_state"] == "idle":
            seen.append(kernel["last_activity"])
            return seen[-1] == seen[-2]
        return False

    wait(idle, step=1)


def press(page, menu, command):
    """Choose a command from the menu bar. A dialog that stands in the way is an error: a person had to answer."""
    bar = (By.XPATH, f"//li[contains(@class, 'lm-MenuBar-item')][.//div[text()='{menu}']]")
    item = (By.CSS_SELECTOR, f".lm-Menu li[data-command='{command}']")

    def chosen():
        dialogs = page.find_elements(By.CSS_SELECTOR, ".jp-Dialog")
        assert not dialogs, f"JupyterLab asks: {dialogs[0].text}"
        with suppress(WebDriverException):  # a slow page may close a menu that was opened too early
            page.find_element(*bar).click()
            WebDriverWait(page, 10).until(shown.element_to_be_clickable(item)).click()
            return True

    wait(chosen)


def code(path):
    """Code cells of a notebook, without the one that papermill adds for the parameters it was given."""
    cells = [cell for cell in io.read_json(path)["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]


def displayed(path):
    """What each code cell shows: text, tables and figures."""
    return [[output.get("data", {}) for output in cell["outputs"]] for cell in code(path)]


def pictures(path):
    """Number of figures of each code cell."""
    return [sum("image/png" in data for data in cell) for cell in displayed(path)]


def written(folder):
    """When each file was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def copied(path, folder):
    """A copy of a notebook without any output, so that what is found in it later is of this run."""
    content = io.read_json(path)
    for cell in (cell for cell in content["cells"] if cell["cell_type"] == "code"):
        cell["outputs"], cell["execution_count"] = [], None
    io.write_json(folder / path.name, content)
    return folder / path.name


@pytest.fixture(scope="module")
def project(executed, tmp_path_factory):
    """A copy of the executed demo in which 03_train has something to train."""
    folder = tmp_path_factory.mktemp("browser") / "project"
    shutil.copytree(executed, folder)
    shutil.rmtree(folder / "data/demo/data-rich/runs/d16")
    return folder


@pytest.fixture(scope="module")
def place(project, tmp_path_factory):
    """The server of `make lab`, showing an empty folder."""
    with server(tmp_path_factory.mktemp("shown"), project) as place:
        yield place


@pytest.fixture(scope="module")
def page(place):
    if not (CHROMIUM and DRIVER):
        pytest.skip("CHROMIUM MISSING: no chromium and chromedriver here, so no notebook was opened in a browser")
    with browser() as page:
        yield page


def test_run_all_in_jupyterlab_shows_what_the_study_showed_and_writes_only_what_is_its_own(
    page, place, project, monkeypatch
):
    monkeypatch.setattr(io, "ROOT", project)
    promised, before = workflow.Step(load_study("demo"), "train", *DEFAULTS).file(".ipynb"), written(project)
    assert sum(pictures(promised)), "it promises no figure"
    opened = copied(io.CODE / "notebooks" / "03_train.ipynb", place.folder)
    run_all(page, place, opened)
    outputs = [output for cell in code(opened) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert all(cell["execution_count"] for cell in code(opened)) and pictures(opened) == pictures(promised)
    assert displayed(opened) == displayed(promised)
    changed = [path for path, when in written(project).items() if before.get(path) != when]
    assert changed and [path for path in changed if not re.match(r"data/demo/[\w-]+/runs/d16/", path)] == []
