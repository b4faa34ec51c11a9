"""JupyterLab as `make lab` starts it, a person before it who uses its menus, and the notebook that this leaves."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as shown
from selenium.webdriver.support.ui import WebDriverWait

from lib import io

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = 400
"""Seconds after which a server, a page or a notebook is given up; a busy machine needs many."""
RUN_ALL, SAVE = ("Run", "runmenu:run-all"), ("File", "docmanager:save")
"""Menu and item, the item by the name of its command: its words change from release to release."""
NEWS = "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"

QUIET = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
QUIET += " disable-component-update disable-dev-shm-usage window-size=1366,900"
"""Switches of Chromium: no window, and no word to anybody but the server."""

TOO_WIDE = """
const boxes = document.querySelectorAll(".jp-Notebook .jp-OutputArea-output, .jp-Notebook .cm-scroller");
return [...boxes].filter(box => box.scrollWidth > box.clientWidth + 2).map(box => box.innerText.slice(0, 60));
"""
"""Beginnings of the outputs and code of the open notebook that have to be scrolled sideways."""


@dataclass
class Server:
    """A running JupyterLab: process id, address, token, and the folder that it shows."""

    pid: int
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
        asked = f"--no-browser --ServerApp.root_dir={folder}"
        asked += " --allow-root" if os.geteuid() == 0 else ""
        words = ["make", "--assume-old=.venv/installed", "lab", f"ARGS={asked}"]
        with open(f"{own}/said", "w+") as said:
            options = {"cwd": io.CODE, "env": environment | places, "stdout": said, "stderr": said}
            process = subprocess.Popen(words, start_new_session=True, **options)
            try:
                yield _started(process, f"{own}/runtime", said)
            finally:
                _stop(process)


def _started(process, runtime, said):
    """The server, when it answers. Jupyter leaves its address and token in a file of the runtime folder."""
    for _ in _seconds("JupyterLab did not start"):
        if process.poll() is not None:
            said.seek(0)
            raise RuntimeError(f"make lab ended: {said.read()}")
        for name in os.listdir(runtime) if os.path.isdir(runtime) else []:
            if name.startswith("jpserver-") and name.endswith(".json"):
                found = io.read_json(f"{runtime}/{name}")
                return Server(found["pid"], found["url"], found["token"], Path(found["root_dir"]))
    return None


def _stop(process):
    """End make and the server, which ends its kernels; wait for them all."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
        for left in psutil.wait_procs(family, timeout=PATIENCE)[1]:
            left.kill()


def _seconds(failure, step=0.5):
    """Turns of a wait; TimeoutError with `failure` when patience is at its end."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(step)
    raise TimeoutError(f"{failure} in {PATIENCE} s")


@contextmanager
def browser():
    """A headless Chromium that knows nothing of any earlier one."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory() as own:
        for switch in [*QUIET.split(), f"user-data-dir={own}"]:
            options.add_argument(f"--{switch}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        driver.set_page_load_timeout(PATIENCE)
        try:
            yield driver
        finally:
            driver.quit()


def run_all(page, place, path):
    """Open a notebook of the server's folder, press Run > Run All Cells, wait for the kernel, press File > Save.

    Its kernel is shut down, so that kernels do not add up. Returns what has to be scrolled sideways.
    """
    notebook = path.name
    page.get(f"{place.url}lab/tree/{notebook}?reset&token={place.token}")
    WebDriverWait(page, PATIENCE).until(shown.visibility_of_element_located((By.CSS_SELECTOR, ".jp-Notebook .jp-Cell")))
    WebDriverWait(page, PATIENCE).until(shown.invisibility_of_element_located((By.ID, "jupyterlab-splash")))
    _rests(place, notebook)
    press(page, *RUN_ALL)
    for _ in _seconds(f"{notebook} did not come to its end"):
        _rests(place, notebook)
        save(page, path)
        if complete(path):
            break
    too_wide = page.execute_script(TOO_WIDE)
    place.get(f"sessions/{place.session(notebook)['id']}", method="delete")
    return too_wide


def _rests(place, notebook):
    """Wait until the page is connected to the kernel, and the kernel has nothing left to do.

    The page itself says idle before it is connected, and a kernel may be idle for a moment between two cells.
    """
    before = None
    for _ in _seconds(f"the kernel of {notebook} did not come to rest", step=1):
        session = place.session(notebook)
        if session and session["kernel"]["connections"] > 0 and session["kernel"]["execution_state"] == "idle":
            last = session["kernel"]["last_activity"]
            if before == last:
                return
            before = last


def press(page, menu, command):
    """Choose a command from the menu bar. A dialog that stands in the way is an error: a person had to answer."""
    bar = (By.XPATH, f"//li[contains(@class, 'lm-MenuBar-item')][.//div[text()='{menu}']]")
    item = (By.CSS_SELECTOR, f".lm-Menu li[data-command='{command}']")
    for _ in _seconds(f"{menu} > {command} could not be chosen"):
        if dialogs := page.find_elements(By.CSS_SELECTOR, ".jp-Dialog"):
            raise RuntimeError(f"JupyterLab asks: {dialogs[0].text}")
        with suppress(WebDriverException):  # a slow page may close a menu that was opened too early
            page.find_element(*bar).click()
            WebDriverWait(page, 10).until(shown.element_to_be_clickable(item)).click()
            return


def save(page, path):
    before = os.stat(path).st_mtime_ns
    press(page, *SAVE)
    for _ in _seconds(f"{path} was not saved"):
        if os.stat(path).st_mtime_ns != before:
            return


def code(path):
    """Code cells of a notebook, without the one that papermill adds for the parameters it was given."""
    cells = [cell for cell in io.read_json(path)["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]


def complete(path):
    """Whether every code cell has run, or one of them has failed and stopped the others."""
    cells = [cell for cell in code(path) if "".join(cell["source"]).strip()]
    failed = any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    return failed or all(cell["execution_count"] for cell in cells)


def pictures(path):
    """Number of figures of each code cell."""
    return [sum("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in code(path)]


def faults(path, promised):
    """What is wrong with a saved notebook, a sentence each that names notebook and cell.

    Parameters
    ----------
    promised : list of int
        How many figures each code cell has to show, as by `pictures` of an executed copy.
    """
    found = []
    for number, (cell, figures, due) in enumerate(zip(code(path), pictures(path), promised, strict=True), start=1):
        here = f"{path.name}, code cell {number}"
        if not cell["execution_count"]:
            found.append(f"{here} has not run")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                found.append(f"{here} failed: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"{here} writes to standard error: {''.join(output['text']).strip()}")
        if figures != due and cell["execution_count"]:
            found.append(f"{here} shows {figures} figures instead of {due}")
    return found


def copied(path, folder):
    """A copy of a notebook without any output, so that what is found in it later is of this run."""
    content = io.read_json(path)
    for cell in (cell for cell in content["cells"] if cell["cell_type"] == "code"):
        cell["outputs"], cell["execution_count"] = [], None
    io.write_json(folder / path.name, content)
    return folder / path.name
