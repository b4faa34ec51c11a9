"""One self-contained HTML page of a study: its executed notebooks in order, read without a network or a server.

nbconvert does the notebooks and latex2mathml the equations; lib/page/report is the template. What is written here is
what neither knows: which of many notebooks to show, what has failed, and how they become one page.
"""

import hashlib
import html
import json
import re
from dataclasses import dataclass, field

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from lib import io
from lib.io import InputError

STEPS = ("01_data", "02_model", "03_train", "04_fit", "05_figures")
"""Notebooks in reading order."""


@dataclass
class Step:
    """One notebook of the study as the page shows it. `title` says of which regime and size it is, if of any."""

    name: str
    notebook: nbformat.NotebookNode
    title: str = ""
    others: int = 0
    failure: str = ""
    headings: list = field(default_factory=list)  # (anchor, text)


def write(study):
    """Write figures/<study>/report.html from the executed notebooks of a study; the same notebooks give the same bytes.

    Returns
    -------
    Path of the page

    Raises
    ------
    InputError
        The study has not been run.
    """
    steps, missing, failures = read(study)
    page = joined(steps, io.shown(study.data / "notebooks"))
    resources = {"steps": steps, "missing": missing, "failures": failures, "study": study.name,
                 "facts": origin(study, steps)}  # fmt: skip
    body, _ = Exporter().from_notebook_node(page, {"report": resources, "metadata": {"name": study.name}})
    place = study.figures / "report.html"
    with io.atomic(place) as partial:
        partial.write_text(body, encoding="utf-8")
    return place


def read(study):
    """The notebooks to show, the steps that have none, and every failure as (step shown or not, what, why)."""
    steps, missing, failures = [], [], []
    for name in STEPS if not study.runs else ["04_fit"]:
        found = [_opened(study, name, *of) for of in _of(study, name)]
        found = [step for step in found if step]
        if not found:
            missing.append(name)
            continue
        failed = [step for step in found if step.failure]
        failures += [(name, step.title, step.failure) for step in failed]
        chosen = (failed or [found[-1] if name == "03_train" else found[0]])[0]
        chosen.others = len(found) - 1
        steps.append(chosen)
    if not steps:
        raise InputError(
            f"study {study.name} has no executed notebooks yet; run it first: make run STUDY={study.name}."
        )
    return steps, missing, failures


def _of(study, name):
    """What a step's notebooks are of, in the order of telling: (), or (regime,), or (regime, size)."""
    if name == "01_data":
        return [(regime,) for regime in study.regimes]
    if name == "03_train":  # the first regime last, and its largest size last of all: a law rests on it
        return [(regime, size.name) for regime in reversed(list(study.regimes)) for size in study.sizes]
    return [()]


def _opened(study, name, *of):
    place = study.data / "notebooks" / f"{'-'.join((name, *of))}.ipynb"
    if not place.is_file():
        return None
    try:
        notebook = nbformat.read(place, as_version=4)
    except (ValueError, nbformat.reader.NotJSONError):
        raise InputError(f"{io.shown(place)} cannot be read as a notebook; run the study again.") from None
    return Step(name, notebook, ", ".join(of), failure=failure(notebook))


def failure(notebook):
    """Where and why an executed notebook failed, or nothing."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"cell [{cell['execution_count']}]: {output['ename']}: {' '.join(output['evalue'].split())}"
    ended = notebook.metadata.get("papermill", {}).get("end_time")
    return "" if ended else "it was not executed to its end"


def joined(steps, place):
    """All steps as one notebook; figures and tables numbered, and shown once. `place` is where the notebooks lie."""
    page, seen = nbformat.v4.new_notebook(metadata=steps[0].notebook.metadata), {}
    for step in steps:
        for number, cell in enumerate(_introduced(step, place)):
            cell = nbformat.from_dict({**cell, "id": f"{step.name}-{number}"})
            cell.metadata["step"] = step.name
            if cell.cell_type == "markdown":
                step.headings += [(slug(step.name, text), text) for text in re.findall(r"(?m)^## (.+)$", cell.source)]
            else:
                cell.outputs = list(_numbered(_captioned(cell.outputs), seen))
            page.cells.append(cell)
    return page


def _introduced(step, place):
    """The cells of a step, without those that papermill adds to a failed one; after the first, which of many it is."""
    kept = (cell for cell in step.notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", []))
    first, *rest = (cell for cell in kept if cell.source.strip())
    if not step.title:
        return [first, *rest]
    others = f" {step.others} more notebooks of this step lie in {place}/." if step.others else ""
    return [first, nbformat.v4.new_markdown_cell(f"*Shown for {step.title}.{others}*"), *rest]


def _captioned(outputs):
    """Outputs with their captions in their own metadata, where a notebook has them as the next output."""
    kept = []
    for output in outputs:
        if output.get("metadata", {}).get("caption"):
            text = output["data"]["text/markdown"].removeprefix("<small>").removesuffix("</small>")
            kept[-1].setdefault("metadata", {})["caption"] = text
        else:
            kept.append(nbformat.from_dict(output))
    return kept


def _numbered(outputs, seen):
    """Outputs with the number of each figure and captioned table; a link where the same has been shown before."""
    for output in outputs:
        kind = _kind(output)
        if kind:
            content = output["data"]["image/png" if kind == "Figure" else "text/html"]
            key = hashlib.sha256(content.encode()).hexdigest()
            if key in seen:
                yield _text(f"Shown above: [{seen[key]}](#{anchor(seen[key])}).")
                continue
            seen[key] = f"{kind} {1 + sum(name.startswith(kind) for name in seen.values())}"
            output.metadata["number"] = seen[key]
        yield output


def _kind(output):
    data = output.get("data", {})
    if "image/png" in data:
        return "Figure"
    return "Table" if "text/html" in data and output.metadata.get("caption") else None


def anchor(number):
    """Figure 3 -> figure-3."""
    return number.lower().replace(" ", "-")


def _text(markdown):
    return nbformat.v4.new_output("display_data", data={"text/markdown": markdown, "text/plain": markdown})


def origin(study, steps):
    """Where the page comes from, {what: value}: study, census, seeds, commit, versions, date of the laws."""
    laws = study.data / "laws.json"
    law = next(iter(next(iter(io.read_json(laws).values())).values())) if laws.is_file() else {}
    made = law.get("provenance", {})
    ended = {step.name: step.notebook.metadata.get("papermill", {}).get("end_time") for step in steps}.get("04_fit")
    facts = {
        "study": f"params/{study.name}.yaml", "census": made.get("census"), "split": made.get("split"),
        "runs": study.runs and study.runs.table, "seeds": made.get("seeds"), "commit": made.get("code_version"),
        "laws fitted": ended and f"{ended[:16].replace('T', ' ')} UTC", "versions": made.get("versions"),
    }  # fmt: skip
    return {what: value if isinstance(value, str) else json.dumps(value) for what, value in facts.items() if value}


def slug(step, heading):
    """Anchor of a heading in the page."""
    return f"{step}-{re.sub(r'[^a-z0-9]+', '-', heading.lower()).strip('-')}"


class Renderer(IPythonRenderer):
    """Markdown of one step of the page: anchors of its own, links between notebooks within the page, MathML."""

    def __init__(self, step, shown):
        super().__init__(escape=False)
        self.step, self.shown = step, shown

    def heading(self, text, level, **_):
        anchor = self.step if level == 1 else slug(self.step, html.unescape(text))
        return f'<h{level + 1} id="{anchor}">{text}</h{level + 1}>\n'

    def link(self, text, url, title=None):
        name = url.removesuffix(".ipynb")
        if name in STEPS:
            return super().link(text, f"#{name}", title) if name in self.shown else text
        return super().link(text, url, title)

    def block_math(self, body):
        return convert(" ".join(body.split()), display="block")

    def inline_math(self, body):
        return convert(body)


def _caption(text):
    """A caption, which is Markdown too, as the inside of one paragraph."""
    rendered = MarkdownWithMath(Renderer("", ())).render(text or "")
    return rendered.strip().removeprefix("<p>").removesuffix("</p>")


class Exporter(HTMLExporter):
    """nbconvert's HTML with the page's template and `Renderer`."""

    template_name = "report"

    def __init__(self, **options):
        super().__init__(extra_template_basedirs=[str(io.CODE / "lib" / "page")], **options)

    @pass_context
    def markdown2html(self, context, source):
        """The template's filter of this name."""
        shown = {step.name for step in context["resources"]["report"]["steps"]}
        return MarkdownWithMath(Renderer(context["cell"].metadata.step, shown)).render(source)

    def default_filters(self):
        yield from super().default_filters()
        yield "anchor", anchor
        yield "caption", _caption
