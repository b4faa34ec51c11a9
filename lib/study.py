"""One YAML file is one study: its typed, validated parameters."""

import datetime
import difflib
import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lib import io, names, plain
from lib.io import InputError
from lib.model.sizes import PUBLISHED, Size


def _number(value):
    """YAML reads 4e-3, without a point, as a word."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value) else value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Share = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seeds = list[Annotated[int, Field(ge=0)]]

PROTOCOLS = {
    "published": {
        "library_size": "panel", "statistics_from": "all", "train_on": "all", "masks": "bernoulli", "report": "best",
        "learning_rate": 3.125e-5, "width_exponent": 0.0, "warmup": 0.0, "decay": 0.0, "final_rate": 1.0,
        "dropout": 0.1, "embedding_scale": 0.02, "cells_seen": 240_000, "evaluations": 61,
    },
}  # fmt: skip
"""What each protocol sets where the study file is silent. `published` is that of arXiv 2602.15253, fault by fault;
`tuned` sets the same keys to their defaults."""

PUBLISHED_TISSUES = [
    "blood", "brain", "heart", "intestine", "kidney", "liver", "lung", "pancreas", "skin of body", "spleen",
]  # fmt: skip
"""Labels of tissue_general of the ten tissues of arXiv 2602.15253, whose "skin" the Census calls "skin of body"."""


class Strict(BaseModel):
    """Refuses unknown keys and silent conversions, and cannot be changed after it has been checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Simulation(Strict):
    """The simulated census (lib.data.simulate): a tree of cell states seen through negative-binomial counts.

    `depth` is the median library size over `transcriptome` genes, of which the census holds `genes`.
    """

    cells: Annotated[int, Field(ge=100)]
    genes: Annotated[int, Field(ge=10)] = 2000
    transcriptome: Count = 20_000
    states: Count = 256
    zipf: Positive = 1.0
    donors: Count = 40
    profiles: Count = 4
    profile_sd: Annotated[Number, Field(ge=0)] = 0.15
    dispersion: Positive = 2.0
    depth: Positive = 3000.0
    depth_sd: Annotated[Number, Field(ge=0)] = 0.4
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def genes_of_a_transcriptome(self):
        if self.genes > self.transcriptome:
            raise ValueError(f"genes is {self.genes:,}, above the {self.transcriptome:,} of transcriptome; raise it")
        return self


def _date(value):
    return value.isoformat() if isinstance(value, datetime.date) else value


def _text(value):
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Label = Annotated[str, BeforeValidator(_text), Field(min_length=1)] | None


class Source(Strict):
    """A file or folder of counts (or a glob), and labels that hold for all of its cells and go before the file's own.

    A path that ends in .csv is a sample sheet: a table with these columns, one file to a row.
    """

    path: Annotated[str, Field(min_length=1)]
    donor_id: Label = None
    dataset_id: Label = None
    tissue: Label = None
    assay: Label = None
    disease: Label = None
    sex: Label = None
    development_stage: Label = None
    suspension_type: Label = None


def _source(given):
    return {"path": given} if isinstance(given, str) else given


def _listed(given):
    return [given] if isinstance(given, str) else given


class Genes(Strict):
    """How one's own files are pooled: over the genes of all files, or of any; a gene named twice refused or summed."""

    pool: Literal["intersection", "union"] = "intersection"
    duplicates: Literal["refuse", "sum"] = "refuse"


def _published(value):
    return PUBLISHED_TISSUES if value == "published" else value


class Sample(Strict):
    """Draw at most `each` cells of every label of `by`, and `per_donor` of every donor of a data set, before the split.

    Cells are taken in blocks of `block` neighbouring ids, which a remote Census gives many times faster than scattered
    ones. A regime reads them as fast when it asks for most of the sample.
    """

    by: str = "dataset_id"
    each: Count
    per_donor: Count | None = None
    block: Count = 64


class S3(Strict):
    """The server of an s3:// uri, when it is not Amazon's; `signed` sends the credentials of the AWS environment."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = None
    region: str = "us-west-2"
    signed: bool = False


class Census(Strict):
    """Where the counts come from. Exactly one of `simulate`, `version`, `uri`, `h5ad` and `files` is given.

    Without `filter`, `split.condition` chooses the cells: of a public release other ones than of your own files.
    """

    simulate: Simulation | None = None
    version: Annotated[str, BeforeValidator(_date)] | None = None
    uri: str | None = None
    h5ad: list[str] | None = None
    files: Annotated[list[Annotated[Source, BeforeValidator(_source)]] | None, BeforeValidator(_listed)] = None
    genes: Genes = Genes()
    donor: str = "donor_id"
    dataset: str = "dataset_id"
    tissue: str = "tissue"
    filter: str | None = None
    tissues: Annotated[list[str], BeforeValidator(_published)] = []
    sample: Sample | None = None
    s3: S3 | None = None
    seed: Annotated[int, Field(ge=0)] = 42

    @model_validator(mode="after")
    def one_source(self):
        given = [key for key in ("simulate", "version", "uri", "h5ad", "files") if getattr(self, key) is not None]
        if len(given) != 1:
            sources = "simulate, version, uri, h5ad or files"
            raise ValueError(f"needs exactly one of {sources}, and has {given or 'none of them'}")
        if self.version is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.version):
            raise ValueError(
                f"version {self.version!r} is not a dated release such as 2025-11-08; moving names cannot be rerun"
            )
        if self.s3 and not (self.uri or "").startswith("s3://"):
            raise ValueError("s3 names the server of a uri that starts with s3://; give such a uri, or leave s3 out")
        return self


class Split(Strict):
    """Which cells are held out: whole groups of the obs column `by`, or `random` cells.

    Donors with one label of the obs column `related` (a family, one person under several names) stay together. Each
    held-out side takes its share of a regime's cells. With `cells`, each has that many instead, the same ones in every
    regime, and a regime's own number counts training cells.

    Two more test sides can be asked for: `dataset` sets whole data sets aside before all else, as `test_dataset`;
    `random` takes single cells of donors that train, as `test_random`, to show what a random split leaks.
    """

    by: str = "donor_id"
    related: str | None = None
    validation: Share = 0.05
    test: Share = 0.05
    dataset: Share | None = None
    random: Share | None = None
    cells: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 1

    @property
    def shares(self):
        """Share of the cells of each held-out side that is asked for, {side: share}."""
        sides = {"validation": self.validation, "test": self.test}
        sides |= {"test_dataset": self.dataset, "test_random": self.random}
        return {side: share for side, share in sides.items() if share is not None}

    @model_validator(mode="after")
    def leaves_training_cells(self):
        if sum(self.shares.values()) >= 1:
            raise ValueError("the held-out sides together leave no cells to train on; keep their sum below 1")
        return self

    @model_validator(mode="after")
    def further_sides_differ(self):
        if self.by == "random" and (self.dataset or self.random):
            raise ValueError("by: random holds out single cells already; drop dataset and random, or split by a column")
        if self.dataset and "dataset_id" in (self.by, self.related):
            raise ValueError(
                "validation and test are whole data sets already where by or related is dataset_id; drop dataset, or "
                "split by donor_id"
            )
        return self

    @model_validator(mode="after")
    def keeps_what_is_related_together(self):
        if self.by == "random" and self.related:
            raise ValueError(f"by: random splits the groups of {self.related} too; drop related, or split by a column")
        return self


class Masking(Strict):
    """Which genes are hidden: round(share x genes) of each cell; `per_cell` fixed masks for each held-out cell."""

    share: Share = 0.15
    per_cell: Count = 4
    seed: Annotated[int, Field(ge=0)] = 2


class Train(Strict):
    """How every size is trained. `protocol` sets what the study file leaves out."""

    protocol: Literal["tuned", "published"] = "tuned"
    objective: Literal["mse", "poisson", "negative_binomial"] = "mse"
    cells_seen: Count = 240_000
    batch: Count = 32
    learning_rate: Positive = 0.0098
    reference_width: Count = 64
    width_exponent: Number = 0.23
    highest_rate: Positive | None = None
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.05
    decay: Annotated[Number, Field(ge=0, lt=1)] = 0.2
    final_rate: Annotated[Number, Field(ge=0, le=1)] = 0.0
    tolerance: Positive = 0.01
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    clip: Positive = 1.0
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    embedding_scale: Positive = 0.5
    evaluations: Annotated[int, Field(ge=2)] = 20
    library_size: Literal["transcriptome", "panel"] = "transcriptome"
    statistics_from: Literal["train", "all"] = "train"
    train_on: Literal["train", "all"] = "train"
    masks: Literal["fixed", "bernoulli"] = "fixed"
    report: Literal["final", "best"] = "final"

    @model_validator(mode="before")
    @classmethod
    def fill_from_protocol(cls, given):
        if not isinstance(given, dict) or not isinstance(given.get("protocol"), str):
            return given
        return PROTOCOLS.get(given["protocol"], {}) | given

    @model_validator(mode="after")
    def noisy_masks_of_squared_errors_only(self):
        if self.objective != "mse" and (self.report == "best" or self.masks == "bernoulli"):
            raise ValueError(
                f"report: best and masks: bernoulli, as in the published protocol, are of squared errors, and the "
                f"objective is {self.objective}; set report: final and masks: fixed, or objective: mse"
            )
        return self


PROTOCOLS["tuned"] = {key: Train.model_fields[key].default for key in PROTOCOLS["published"]}


class Regime(Strict):
    """One condition of a study: how many genes and cells, and what else differs from the other regimes.

    With `donors`, training cells come from that many donors only, chosen before the cells; held-out cells do not.
    `train` overrides the study's own: its keys go first, then all keys of a protocol that it names, then the keys of
    the study's `train`, then those of the protocol that this names.
    """

    genes: Annotated[int, Field(ge=2)]
    cells: Annotated[int, Field(ge=10)]
    donors: Count | None = None
    train: Train | None = None


class Fit(Strict):
    """How the law is fitted: bootstrap resamples, their seed, the level of every interval."""

    resamples: Annotated[int, Field(ge=100)] = 10_000
    seed: Annotated[int, Field(ge=0)] = 0
    level: Share = 0.95


class SizeShape(Strict):
    """A size given by its shape; `name` is made from the shape when it is left out."""

    name: names.folder("size") | None = None
    d: Count
    layers: Count
    heads: Count = 1
    ff_mult: Count = 4

    @model_validator(mode="after")
    def heads_divide_width(self):
        if self.d % self.heads:
            raise ValueError(
                f"d = {self.d} is not a multiple of heads = {self.heads}; choose a width that the heads divide"
            )
        return self


def _size(given):
    if isinstance(given, str):
        if given not in PUBLISHED:
            raise ValueError(
                f"{given!r} is not a size{_nearest(given, PUBLISHED)}; "
                f"allowed: {', '.join(PUBLISHED)} or {{d, layers, heads, ff_mult}}"
            )
        return PUBLISHED[given]
    shape = SizeShape.model_validate(given)
    name = shape.name or f"d{shape.d}-l{shape.layers}-h{shape.heads}-f{shape.ff_mult}"
    return Size(name, shape.d, shape.layers, shape.heads, shape.ff_mult)


class Given(Strict):
    """Runs that were trained elsewhere: a CSV file in the project, and how its columns map to those of runs.csv.

    `columns` renames {theirs: ours}; `regimes` names the regime by the value of one column, {column: {value: regime}};
    `gene_mean_mse` is the loss of predicting each gene's mean, {regime: loss}, where it is known.
    """

    table: names.InProject
    columns: dict[str, str] = {}
    regimes: dict[str, dict[str | int, str]] = {}
    gene_mean_mse: dict[str, Positive] = {}


class Study(Strict):
    """A validated study: either data, sizes and seeds to train, or `runs` that are given.

    `seeds_of` gives a size seeds of its own, such as fewer to one that takes hours: {size: seeds}.
    `genes_from` names the regime whose cells choose the genes of every regime, by that regime's `statistics_from`; with
    `split.cells` all regimes are then judged on the same cells, genes and masks.
    Paths are derived from its names (lib.names), so that a study never writes outside its own folders.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: names.folder("study")
    runs: Given | None = None
    census: Census | None = None
    regimes: dict[names.folder("regime"), Regime] = {}
    genes_from: str | None = None
    split: Split = Split()
    masking: Masking = Masking()
    sizes: list[Annotated[Size, BeforeValidator(_size)]] = []
    seeds: Seeds = []
    seeds_of: dict[str, Annotated[Seeds, Field(min_length=1)]] = {}
    train: Train = Train()
    fit: Fit = Fit()

    @model_validator(mode="after")
    def trained_or_given(self):
        parts = {key: bool(getattr(self, key)) for key in ("census", "regimes", "sizes", "seeds")}
        if self.runs is None and not all(parts.values()):
            missing = [key for key, there in parts.items() if not there]
            raise ValueError(
                f"{', '.join(missing)} is missing or empty; add it, or name a table of finished runs with runs"
            )
        if self.runs is not None and any(parts.values()):
            raise ValueError(
                "has runs that are given and also census, regimes, sizes or seeds to train; keep one of the two"
            )
        return self

    @model_validator(mode="after")
    def no_run_twice(self):
        lists = {"regimes": self.regimes, "sizes": [size.name for size in self.sizes], "seeds": self.seeds}
        lists |= {f"seeds_of.{size}": seeds for size, seeds in self.seeds_of.items()}
        for key, values in lists.items():
            if twice := names.twice(values):
                raise ValueError(
                    f"{key} lists {', '.join(twice)} more than once; a run belongs to one regime, one size and one seed"
                )
        return self

    @model_validator(mode="after")
    def seeds_of_known_sizes(self):
        known = [size.name for size in self.sizes]
        for name in self.seeds_of:
            if name not in known:
                raise ValueError(
                    f"seeds_of names {name!r}, which is no size{_nearest(name, known)}; sizes has {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def same_number_of_genes(self):
        if self.genes_from is None:
            return self
        if self.genes_from not in self.regimes:
            raise ValueError(
                f"genes_from names {self.genes_from!r}, which is no regime{_nearest(self.genes_from, self.regimes)}; "
                f"regimes has {', '.join(self.regimes) or 'none'}"
            )
        if len({regime.genes for regime in self.regimes.values()}) > 1:
            asked = ", ".join(f"{name} for {regime.genes:,}" for name, regime in self.regimes.items())
            raise ValueError(f"genes_from gives all regimes the same genes, and they ask for unequal numbers: {asked}")
        return self

    @model_validator(mode="after")
    def trainings_hold_together(self):
        for name in self.regimes:
            try:
                self.training(name)
            except ValidationError as error:
                raise ValueError(f"regimes.{name}.train: {error.errors()[0]['ctx']['error']}") from None
        return self

    def training(self, regime):
        """How a regime's models are trained: the study's `train` under the regime's own."""
        own = self.regime(regime).train
        changed = {key: getattr(own, key) for key in own.model_fields_set} if own else {}
        return Train.model_validate(dict(self.train) | changed)

    def panel_settings(self, regime):
        """All that a regime's panel depends on, besides the source of its Census."""
        chosen = {"census": {"filter", "tissues", "sample", "seed"}, "split": True, "masking": True, "genes_from": True}
        content = self.model_dump(mode="json", include=chosen, exclude_none=True)
        content["regimes"] = {
            name: self.regime(name).model_dump(include={"genes", "cells", "donors"}, exclude_none=True)
            for name in sorted({regime, self.genes_from or regime})
        }
        content["library_size"] = self.training(regime).library_size
        content["statistics_from"] = self.training(self.genes_from or regime).statistics_from
        return content

    @property
    def data(self):
        return io.ROOT / "data" / self.name

    @property
    def figures(self):
        return io.ROOT / "figures" / self.name

    def folder(self, regime):
        """Folder of one regime."""
        self.regime(regime)
        return self.data / regime

    def regime(self, name):
        """The regime of that name."""
        if name not in self.regimes:
            raise InputError(
                f"study {self.name} has no regime {name!r}{_nearest(name, self.regimes)}; "
                f"it has {', '.join(self.regimes)}."
            )
        return self.regimes[name]

    def size(self, name):
        """The size of that name."""
        sizes = {size.name: size for size in self.sizes}
        if name not in sizes:
            raise InputError(
                f"study {self.name} has no size {name!r}{_nearest(name, sizes)}; it has {', '.join(sizes)}."
            )
        return sizes[name]

    def seeds_for(self, size):
        """Seeds of the size of that name."""
        return self.seeds_of.get(size, self.seeds)

    def run_folder(self, regime, size, seed):
        return self.folder(regime) / "runs" / size / f"seed-{seed}"


def load_study(name):
    """Read and check params/<name>.yaml.

    Raises
    ------
    InputError
        Naming the file, the key and what is allowed.
    """
    path = io.ROOT / "params" / f"{name}.yaml"
    known = sorted(file.stem for file in path.parent.glob("*.yaml"))
    if name not in known:
        raise InputError(
            f"there is no study {name!r}{_nearest(name, known)}; params/ has {', '.join(known) or 'no study file'}."
        )
    content = plain.read(path)
    if not isinstance(content, dict):
        raise InputError(
            f"params/{path.name} should hold keys such as census and sizes, and holds {type(content).__name__}."
        )
    return parse_study(content, name)


def parse_study(content, name):
    """Check the content of a study file; see `load_study`."""
    try:
        return Study.model_validate({**content, "name": name})
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")  # typos first
        said = f"params/{name}.yaml: {_sentence(problems[0], len(problems))}"
        raise InputError(" ".join(said.split())) from None


def _sentence(problem, count):
    """One pydantic problem, said for a person: place, what is wrong, nearest valid name."""
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "the study"
    more = f" ({count - 1} more after this one)" if count > 1 else ""
    if problem["type"] == "extra_forbidden":
        allowed = _allowed_keys(problem["loc"][:-1])
        said = f"{place} is not a known key{_nearest(problem['loc'][-1], allowed)}; allowed here: {', '.join(allowed)}"
    elif problem["type"] == "missing":
        said = f"{place} is missing; add it"
    elif problem["type"] == "value_error":
        said = f"{place}: {problem['ctx']['error']}"
    else:
        said = f"{place} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    return f"{said}{more}."


def _allowed_keys(place):
    """Keys that the model at `place` (a pydantic location) knows."""
    start, inside = {"sizes": (SizeShape, ()), "regimes": (Regime, place[2:])}.get(
        place[0] if place else "", (Study, place)
    )
    model = start
    for part in inside:
        if isinstance(part, str):  # else the number of an entry in a list
            model = _model(model.model_fields[part].annotation)
    return [key for key in model.model_fields if model is not Study or key != "name"]


def _model(annotation):
    """The first pydantic model in an annotation such as list[Source] | None."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((found for kind in get_args(annotation) if (found := _model(kind))), None)


def _nearest(word, words):
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
