"""Every command of README and docs/, run as it stands there; long ones are planned instead. A new one needs a rule."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib import io
from lib.run import cli

README = "\n".join(path.read_text() for path in [io.CODE / "README.md", *sorted((io.CODE / "docs").glob("*.md"))])
PROGRAMS = ("make", "snakemake", "papermill", "python", "python3.11", ".venv/bin/python", "pip", "uv", "conda")
LINKED = ("lib", "tests", "notebooks", "benchmarks", "profiles", "Makefile", "Snakefile")
LINKED += ("pyproject.toml", "constraints.txt")


def commands(text):
    """Every command of a page, as it stands there: lines of its bash blocks, and code in the text that is one."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    found = [line for line in lines if line] + [code for code in inline if code.split()[0] in PROGRAMS]
    return sorted(set(found) - {"python"})


@pytest.fixture(scope="module")
def page(executed, tmp_path_factory):
    """A folder that looks like a checkout: the real code by links, params and results of its own, the demo finished."""
    folder = tmp_path_factory.mktemp("page")
    for name in LINKED:
        (folder / name).symlink_to(io.CODE / name)
    (folder / ".venv").mkdir()
    for place in os.scandir(sys.prefix):
        if place.name != "installed":
            (folder / ".venv" / place.name).symlink_to(place.path)
    (folder / ".venv" / "installed").touch()
    for name in ("data", "figures"):
        shutil.copytree(executed / name, folder / name)
    shutil.copytree(io.CODE / "params", folder / "params")
    shutil.copy(executed / "params" / "demo.yaml", folder / "params")
    shutil.copy(io.CODE / "data" / "published_runs.csv", folder / "data")
    return folder


def shell(folder, command):
    """Run a command as a person does who stands in that folder; what it said."""
    path = f"{folder}/.venv/bin{os.pathsep}{os.environ['PATH']}"
    unset = ("STUDY", "JOBS", "ARGS", "MAKEFLAGS", "MAKELEVEL", "PYTEST_ADDOPTS", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"SCALING_ROOT": str(folder), "PATH": path}
    words = ["bash", "-c", command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def runs(says="", changed=None, first=None):
    """A rule: the command runs to its end, and says something; with parts `changed`, after something was done first."""

    def check(page, command):
        if first:
            first(page)
        for old, new in (changed or {}).items():
            assert old in command
            command = command.replace(old, new)
        assert says in shell(page, command)

    return check


def planned(page, command):
    """A rule for what takes long: make knows what to call, what it calls knows its words, and the study is there."""
    called = shell(page, command.replace("make ", "make -n ")).strip().splitlines()[-1]
    assert called.startswith(".venv/bin/python -m lib ")
    study = cli.parser().parse_args(called.split()[3:]).study
    assert (page / "params" / f"{study}.yaml").is_file()


def planned_by_snakemake(page, command):
    """A rule for the reader's own study: Snakemake has a plan for it too."""
    own_files(page)
    planned(page, command)
    assert "03_train" in shell(page, "snakemake -n --config study=mine")


def called_by_make(page, command):
    """A rule for what is done without make: it is what `make run` does."""
    assert shell(page, "make -n run").split() == command.split()


def nothing_to_do(page, command):
    """A rule for a study that is finished: nothing is run or written again, and the answer is on ten lines."""

    def results():
        return {path: path.stat().st_mtime_ns for path in (page / "data/demo").rglob("result.json")}

    before, lines = results(), shell(page, command).splitlines()
    assert results() == before and len(before) == 8
    assert any(line.startswith("Twice as much adds points to it: parameters ") for line in lines)
    assert len(lines) <= 10 and lines[0].startswith("regime ") and "Figures: figures/demo/" in lines[-2]


def elsewhere(page, command):
    """A rule for what another test runs to its end: the file that is named is there."""
    assert (io.CODE / command.split()[1]).is_file()


def own_files(page):
    """params/mine.yaml as the README has it, and the files that it names."""
    blocks = re.findall(r"^ *```yaml\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    text = next(block for block in blocks if "h5ad:" in block)
    cells = {"14000": "40", "4700": "30", "1400": "20", "1500": "9"}
    small = {"/path/to/": "input/", "genes: 512": "genes: 64"}
    small |= {f"cells: {old}": f"cells: {new}" for old, new in cells.items()}
    for old, new in small.items():
        text = text.replace(old, new)
    (page / "params" / "mine.yaml").write_text(text)
    counts = np.random.default_rng(0).poisson(1.0, (90, 600)).astype(np.float32)
    obs = pd.DataFrame({"donor_id": list("ABCDEFGHI") * 10, "dataset_id": "d"}, [f"c{n}" for n in range(90)])
    (page / "input").mkdir(exist_ok=True)
    anndata.AnnData(counts, obs, pd.DataFrame(index=[f"G{n}" for n in range(600)])).write_h5ad(page / "input/a.h5ad")


def one_page(page, command):
    """A rule for the page to send: every step, its figures inside it, and no code."""
    assert "report.html" in shell(page, command)
    html = BeautifulSoup((page / "figures/demo/report.html").read_text(), "html.parser")
    images = [image["src"] for image in html.find_all("img")]
    assert len(html.find_all("h1")) == 5 and len(images) > 10 and all(src.startswith("data:image/") for src in images)
    assert "Takeaways" in html.get_text() and "load_study" not in html.get_text()
    assert not [link for link in html.find_all("a") if ".ipynb" in link["href"]], "a link to what is not sent"


def installed(page, command):
    """A rule for pip: it would install what is installed here, in exactly these versions."""
    extras = re.search(r"\.\[(\w+)\]", command)[1]
    project = tomllib.loads((io.CODE / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"][extras]]
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (io.CODE / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {canonicalize_name(name): number for name, number in lines}
    here = {need.name: version(need.name).split("+")[0] for need in needed}
    assert {name: pinned[canonicalize_name(name)] for name in here} == here
    assert all(need.specifier.contains(here[need.name]) for need in needed)


def other_tool(page, command):
    """A rule for other installers, which are not called: they get pip's list."""
    environment = yaml.safe_load((io.CODE / "environment.yml").read_text())
    assert environment["dependencies"][-1]["pip"] == ["-c constraints.txt", "-e .[dev]"]
    assert "environment.yml" in command or "-c constraints.txt -e '.[dev]'" in command


QUICK = "from lib.run import cli; from lib.train import machine; machine.LONGEST = dict(cpu=0, cuda=0); "
QUICK += "cli.main(['check', 'census'])"  # times the smallest size alone
RULES = {
    r"make": runs("make run [STUDY=demo]"),
    r"make run": nothing_to_do,
    r"make run STUDY=mine JOBS=2": planned_by_snakemake,
    r"make run STUDY=[\w-]+( JOBS=\d+| PROFILE=\w+)?": planned,
    r"make test": runs("-m pytest -n 2", {"make": "make -n"}),
    r"make check STUDY=census": runs(
        "200,000 cells, about 2.0 GB", {"make check STUDY=census": f'python -c "{QUICK}"'}
    ),
    r"make check STUDY=mine": runs("genes in the pool: 600", first=own_files),
    r"make lab": runs("jupyter lab", {"make": "make -n"}),  # test_browser starts it
    r"make lint": runs("ruff check", {"make": "make -n"}),
    r"make report STUDY=demo": one_page,
    r"make status( STUDY=demo)?": runs("8 of 8 notebooks done"),
    r"make keep STUDY=matched": runs("-m lib keep matched", {"make": "make -n"}),  # test_fit_summary keeps one
    r"make clean STUDY=name": runs(),
    r"make gpu(-panels|-rehearsal)?": runs("benchmarks/gpu.py", {"make": "make -n"}),  # test_cost runs it in small
    r"source \.venv/bin/activate": runs("/.venv", {"activate": "activate && echo $VIRTUAL_ENV"}),
    r"papermill notebooks/03_train.ipynb .*": runs(),
    r"papermill notebooks/04_fit.ipynb .* published-runs": elsewhere,  # test_notebooks runs it
    r"snakemake -n --config study=demo": runs("Nothing to be done"),
    r"python benchmarks/\w+.py": elsewhere,  # each benchmark has a test that runs it in small
    r"\.venv/bin/python -m lib run demo": called_by_make,
    r"python3\.11 -m venv \.venv && \.venv/bin/pip install .*": installed,
    r"(uv|conda) .*": other_tool,
}


@pytest.mark.parametrize("command", commands(README))
def test_a_command_of_the_readme_does_what_it_says(page, command):
    rules = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, command)]
    assert rules, f"`{command}` is in the README and no rule of {os.path.basename(__file__)} says how to try it"
    rules[0](page, command)
