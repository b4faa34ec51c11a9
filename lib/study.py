"""One YAML file is one study: its typed, validated parameters, and the folders that follow from its names."""

import difflib
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lib import io
from lib.io import InputError
from lib.model.sizes import BUDGETS, PUBLISHED, PUBLISHED_PROTOCOL, PUBLISHED_TISSUES, Size, batch


def folder_name(name: str) -> str:
    """`name`, if a study, regime or size may be called that: it stays in its folder, and is no file's or option's."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_-]|\.[0-9]){0,59}", name):
        allowed = "use at most 60 letters, digits, - and _, a letter or digit first, and a dot only before a digit"
        raise ValueError(f"{name[:80]!r} cannot name a folder; {allowed}")
    return name


def _text(value):
    """YAML reads 2024 as a number where a name was meant."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Number = Annotated[float, Field(strict=False, allow_inf_nan=False)]  # YAML reads 4e-3, without a point, as a word
Share = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Part = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Text = Annotated[str, BeforeValidator(_text)]
Label = Annotated[Text, Field(min_length=1)] | None
FolderName = Annotated[Text, AfterValidator(folder_name)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
Tissues = Annotated[list[str], BeforeValidator(lambda given: PUBLISHED_TISSUES if given == "published" else given)]


class Strict(BaseModel):
    """Refuses unknown keys and silent conversions, and cannot be changed after it has been checked."""

    model_config = ConfigDict(frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def keys_are_known(cls, given):
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                allowed = ", ".join(cls.model_fields)
                raise ValueError(f"{key} is not a known key{_nearest(key, cls.model_fields)}; allowed here: {allowed}")
        return given


class Simulation(Strict):
    """The simulated census (lib.data.simulate): a tree of cell states seen through negative-binomial counts."""

    cells: Annotated[int, Field(ge=100)]  # cells of the census
    genes: Annotated[int, Field(ge=10)] = 2000  # genes of the census
    transcriptome: Count = 20_000  # genes that library size is counted over; the census holds some of them
    states: Count = 256  # cell states, the leaves of the tree
    zipf: Positive = 1.0  # exponent of Zipf's law of their frequencies
    donors: Count = 40  # donors, nested in data sets
    profiles: Count = 4  # batch profiles, of which each donor has one
    profile_sd: NotNegative = 0.15  # their spread: standard deviation of the log-factors on the genes
    dispersion: Positive = 2.0  # theta of the counts, whose variance is m + m^2 / theta
    depth: Positive = 3000.0  # median library size, in counts
    depth_sd: NotNegative = 0.4  # standard deviation of its logarithm
    seed: Seed = 0  # of all that is drawn

    @model_validator(mode="after")
    def genes_of_a_transcriptome(self):
        if self.genes > self.transcriptome:
            raise ValueError(f"genes is {self.genes:,}, above the {self.transcriptome:,} of transcriptome; raise it")
        return self


class Source(Strict):
    """A file or folder of counts, and labels that hold for all of its cells and go before the file's own."""

    path: PathText  # or a glob; a .csv is a sheet with these columns, one file to a row
    donor_id: Label = None  # the person
    dataset_id: Label = None  # the experiment
    tissue: Label = None
    assay: Label = None
    disease: Label = None
    sex: Label = None
    development_stage: Label = None
    suspension_type: Label = None

    @model_validator(mode="before")
    @classmethod
    def path_alone(cls, given):
        return {"path": given} if isinstance(given, str) else given


class Genes(Strict):
    """How user files are pooled."""

    pool: Literal["intersection", "union"] = "intersection"  # over the genes of all files, or of any
    duplicates: Literal["refuse", "sum"] = "refuse"  # what is done about a gene that a file names twice


class Sample(Strict):
    """At most so many cells of every label and donor, drawn before the split."""

    by: str = "dataset_id"  # obs column of the labels
    each: Count  # cells of every label
    per_donor: Count | None = None  # cells of every donor of a data set
    block: Count = 64  # neighbouring cells taken together: a remote Census gives them many times faster


class S3(Strict):
    """The server of an s3:// uri."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = None  # when it is not Amazon's
    region: str = "us-west-2"
    signed: bool = False  # whether the credentials of the AWS environment are sent


class Census(Strict):
    """Where the counts come from: exactly one of the first five keys is given."""

    simulate: Simulation | None = None
    version: Text | None = None  # date of a public release of the Census
    uri: PathText | None = None  # folder or s3:// address of a SOMA Census
    h5ad: Annotated[list[str], Field(min_length=1)] | None = None  # user files, or globs
    files: Annotated[list[Source], Field(min_length=1)] | None = None  # of any kind: a path, or a path with labels
    genes: Genes = Genes()
    donor: str = "donor_id"  # name of that obs column in user files
    dataset: str = "dataset_id"  # name of that obs column in user files
    tissue: str = "tissue"  # name of that obs column in user files
    filter: str | None = None  # condition on obs, instead of the one that lib.data has for this kind of source
    tissues: Tissues = []  # labels of tissue_general that are kept; all where it is empty
    sample: Sample | None = None
    s3: S3 | None = None
    seed: Seed = 42  # of the cells that are drawn

    @property
    def sources(self) -> list[Source]:
        """The user files that are named, with their labels; none for a Census of another kind."""
        return self.files or [Source(path=path) for path in self.h5ad or ()]

    @model_validator(mode="after")
    def one_source(self):
        given = [key for key in ("simulate", "version", "uri", "h5ad", "files") if getattr(self, key) is not None]
        if len(given) != 1:
            has = " and ".join(given) or "none of them"
            raise ValueError(f"needs exactly one of simulate, version, uri, h5ad or files, and has {has}")
        if self.version is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.version):
            dated = "is not a dated release such as 2025-11-08; moving names cannot be rerun"
            raise ValueError(f"version {self.version!r} {dated}")
        by = self.sample.by if self.sample else "donor_id"
        if self.simulate and (self.filter or self.tissues or by not in ("donor_id", "dataset_id")):
            raise ValueError("a simulated census is taken whole, its floor is that of all cells; drop filter, tissues "
                             "and sample, or sample by donor_id or dataset_id")  # fmt: skip
        of_files = [key for key in ("donor", "dataset", "tissue", "genes") if key in self.model_fields_set]
        if of_files and not self.sources:
            raise ValueError(f"{of_files[0]} is of user files, under h5ad or files; leave it out")
        if self.s3 and not (self.uri or "").startswith("s3://"):
            raise ValueError("s3 names the server of a uri that starts with s3://; give such a uri, or leave s3 out")
        return self


SPLITS = ("train", "validation", "test", "test_dataset", "test_random")
"""Names of the splits; a study has the first three at least. In code a split is an index into this."""


class Split(Strict):
    """Which cells are held out: whole groups (donors) for validation and test, and two more tests on request."""

    by: str = "donor_id"  # obs column of the groups, or `random` for single cells
    related: str | None = None  # obs column of what keeps donors together: a family, one person under several names
    validation: Share = 0.05  # share of a regime's cells
    test: Share = 0.05  # share of a regime's cells
    dataset: Share | None = None  # share in whole data sets set aside before all else, as test_dataset
    random: Share | None = None  # share in single cells of training donors, as test_random: what a random split leaks
    cells: Count | None = None  # cells of each held-out split, the same in every regime, instead of shares
    seed: Seed = 1  # of the groups that are held out

    @property
    def shares(self) -> dict[str, float]:
        """Share of the cells of each held-out split that is asked for."""
        shares = zip(SPLITS[1:], (self.validation, self.test, self.dataset, self.random), strict=True)
        return {split: share for split, share in shares if share is not None}

    @model_validator(mode="after")
    def possible(self):
        if sum(self.shares.values()) >= 1:
            raise ValueError("the held-out splits together leave no cells to train on; keep their sum below 1")
        if self.by == "random" and (self.dataset or self.random or self.related):
            raise ValueError("by: random holds out single cells; drop dataset, random and related")
        if self.dataset and "dataset_id" in (self.by, self.related):
            raise ValueError("by or related holds out whole data sets already; drop dataset, or split by donor_id")
        return self


class Masking(Strict):
    """Which genes are hidden."""

    share: Share = 0.15  # of the genes of each cell, rounded to a number of genes
    per_cell: Count = 4  # fixed masks of each held-out cell
    seed: Seed = 2  # of the fixed masks

    def genes(self, of: int) -> int:
        """Number of genes hidden of so many."""
        return max(1, round(self.share * of))


class Train(Strict):
    """How every size is trained. The published protocol does some things otherwise so that it can be compared."""

    protocol: Literal["tuned", "published"] = "tuned"  # sets what the study file leaves out, the same keys in both
    objective: Literal["mse", "negative_binomial"] = "mse"  # squared error of log1p, or bits of the counts
    cells_seen: Count = 240_000  # the training budget
    optimiser: Literal["adamw", "muon"] = "muon"  # of the blocks' matrices; all else is adamw's
    batch: Count | None = None  # cells of one update; by default what lib.model.sizes.batch says
    learning_rate: Positive = 0.008  # peak rate at the reference width
    reference_width: Count = 64  # width d of that model
    width_exponent: Number = 0.66  # the peak rate is learning_rate (reference_width / d)^width_exponent ...
    highest_rate: Positive | None = 0.04  # ... and at most this
    warmup: Part = 0.05  # part of the updates over which the rate rises
    decay: Part = 0.2  # part of the updates over which it falls, at the end
    final_rate: Annotated[Number, Field(ge=0, le=1)] = 0.0  # what it falls to, as a part of the peak
    tolerance: Positive = 0.01  # a run has converged when half its updates give a loss within this part of the last
    beta2: Share = 0.99  # of AdamW
    weight_decay: NotNegative = 0.01
    clip: Positive = 1.0  # largest norm of a gradient
    dropout: Part = 0.0
    embedding_scale: Positive = 0.5  # standard deviation of the initial gene embeddings
    evaluations: Annotated[int, Field(ge=2)] = 20  # evaluations on the way, the learning curve
    library_size: Literal["transcriptome", "panel"] = "transcriptome"  # what counts are divided by
    statistics_from: Literal["train", "all"] = "train"  # cells that choose genes and normaliser
    train_on: Literal["train", "all"] = "train"  # `all` trains on the held-out cells too
    masks: Literal["fixed", "bernoulli"] = "fixed"  # a fixed number of genes hidden in each cell, or each by chance
    report: Literal["final", "best"] = "final"  # the exact loss at the end, or the best noisy evaluation

    @model_validator(mode="before")
    @classmethod
    def fill_from_protocol(cls, given):
        if not isinstance(given, dict) or "protocol" not in given:
            return given
        tuned = {key: cls.model_fields[key].default for key in PUBLISHED_PROTOCOL}
        return (PUBLISHED_PROTOCOL if given["protocol"] == "published" else tuned) | given

    @model_validator(mode="after")
    def published_ways_of_squared_errors_only(self):
        for key, needed in {"report": "final", "masks": "fixed", "library_size": "transcriptome"}.items():
            if self.objective != "mse" and (given := getattr(self, key)) != needed:
                published = f"{key}: {given}, as in the published protocol, is of objective: mse, not {self.objective}"
                raise ValueError(f"{published}; set {key}: {needed}")
        return self

    @property
    def updates(self) -> int:
        """Updates of one run: batches until `cells_seen` cells have been seen."""
        return math.ceil(self.cells_seen / self.batch)

    @property
    def branches(self) -> dict[str, tuple[int, int]]:
        """Earlier budgets: {name: updates at which a run leaves for a branch, and ends it}; none for the best loss."""
        ends = {name: self.updates // part for name, part in BUDGETS.items()} if self.report == "final" else {}
        leaves = {name: end - round(self.decay * end) for name, end in ends.items()}
        return {name: (leaves[name], end) for name, end in ends.items() if leaves[name]}


class Regime(Strict):
    """One condition of a study: how many genes and cells, and what else differs from the other regimes."""

    genes: Annotated[int, Field(ge=2)]  # genes of the panel
    cells: Annotated[int, Field(ge=10)]  # cells of the panel; training cells where split.cells is given
    donors: Count | None = None  # training cells come from that many donors only, chosen before the cells
    thin: Share | None = None  # chance that a count is kept: the same cells, as if they had been sequenced less
    split_seed: Seed | None = None  # instead of split.seed: other donors are held out
    train: Train | None = None  # keys that go before the study's `train`, with all keys of a protocol named here


class Fit(Strict):
    """How the law is fitted."""

    resamples: Annotated[int, Field(ge=100)] = 10_000  # of each bootstrap
    seed: Seed = 0  # of the resamples
    errors: Literal["donors", "cells"] = "donors"  # whose scatter c has: cells, where donors do not differ otherwise


class SizeShape(Strict):
    """A size given by its shape."""

    name: FolderName | None = None  # made from the shape when it is left out
    d: Count  # width of a token
    layers: Count  # encoder blocks
    heads: Count = 1  # attention heads of each
    ff_mult: Count = 4  # feed-forward width as a multiple of d

    @model_validator(mode="after")
    def heads_divide_width(self):
        if self.d % self.heads:
            raise ValueError(f"d = {self.d} is not a multiple of heads = {self.heads}; choose another width")
        return self


def _size(given):
    if isinstance(given, str):
        if given not in PUBLISHED:
            sizes = f"{', '.join(PUBLISHED)} or {{d, layers, heads, ff_mult}}"
            raise ValueError(f"{given!r} is not a size{_nearest(given, PUBLISHED)}; allowed: {sizes}")
        return PUBLISHED[given]
    shape = SizeShape.model_validate(given)
    parts = {"l": (shape.layers, 1), "h": (shape.heads, 1), "f": (shape.ff_mult, 4)}
    made = f"d{shape.d}" + "".join(f"-{key}{value}" for key, (value, usual) in parts.items() if value != usual)
    return Size(shape.name or made, shape.d, shape.layers, shape.heads, shape.ff_mult)


class Given(Strict):
    """Runs that were trained elsewhere."""

    table: PathText  # a CSV file, from the project folder
    columns: dict[str, str] = {}  # its columns under the names of runs.csv, {theirs: ours}
    regimes: dict[str, dict[str | int, Text]] = {}  # regimes by the values of one column, {column: {value: regime}}
    gene_mean_mse: dict[Text, Positive] = {}  # loss of predicting each gene's mean where it is known, {regime: loss}


class Study(Strict):
    """A validated study: either data, sizes and seeds to train, or `runs` that are given."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: FolderName  # of the study file, without .yaml
    runs: Given | None = None
    census: Census | None = None
    regimes: dict[FolderName, Regime] = {}
    genes_from: Text | None = None  # regime whose cells choose the genes of all regimes
    split: Split = Split()
    masking: Masking = Masking()
    sizes: list[Annotated[Size, BeforeValidator(_size)]] = []  # published names or shapes
    seeds: list[Seed] = []  # one run of every size for each
    seeds_of: dict[Text, Annotated[list[Seed], Field(min_length=1)]] = {}  # other seeds for a size, {size: seeds}
    train: Train = Train()
    fit: Fit = Fit()

    @model_validator(mode="after")
    def trained_or_given(self):
        parts = {key: bool(getattr(self, key)) for key in ("census", "regimes", "sizes", "seeds")}
        if self.runs is None and not all(parts.values()):
            missing = ", ".join(key for key, there in parts.items() if not there)
            raise ValueError(f"{missing} is missing or empty; add it, or name a table of finished runs with runs")
        if self.runs is not None and any(parts.values()):
            raise ValueError("has given runs and also census, regimes, sizes or seeds to train; keep one of the two")
        return self

    @model_validator(mode="after")
    def no_run_twice(self):
        """Names that differ in case alone count as one: some disks do not tell them apart."""
        of_study, of_regimes = {self.name.lower()}, {name.lower() for name in self.regimes}
        if taken := ({"gallery", "results"} & of_study) | ({"census", "notebooks"} & of_regimes):
            raise ValueError(f"no study or regime can be called {min(taken)}, a folder beside it; choose another name")
        lists = {"regimes": self.regimes, "sizes": [size.name for size in self.sizes], "seeds": self.seeds}
        lists |= {f"seeds_of.{size}": seeds for size, seeds in self.seeds_of.items()}
        for key, values in lists.items():
            lower = [str(value).lower() for value in values]
            if twice := ", ".join(sorted({name for name in lower if lower.count(name) > 1})):
                raise ValueError(f"{key} lists {twice} more than once; a run has one regime, one size and one seed")
        return self

    @model_validator(mode="after")
    def parts_hold_together(self):
        sizes = [size.name for size in self.sizes]
        for size in self.seeds_of:
            if size not in sizes:
                raise ValueError(f"seeds_of names {size!r}, which is no size{_nearest(size, sizes)}")
        if (name := self.genes_from) and name not in self.regimes:
            raise ValueError(f"genes_from names {name!r}, which is no regime{_nearest(name, self.regimes)}")
        asked = {name: regime.genes for name, regime in self.regimes.items()}
        if self.genes_from and len(set(asked.values())) > 1:
            raise ValueError(f"genes_from gives all regimes the same genes, and they ask for unequal numbers: {asked}")
        if self.genes_from and len({regime.split_seed for regime in self.regimes.values()}) > 1:
            raise ValueError("genes_from takes the genes of one regime, and another split_seed holds out its cells")
        if self.split.random and (few := [name for name, regime in self.regimes.items() if regime.donors]):
            raise ValueError(f"split.random holds out cells of all training donors, and {few[0]} has a few; drop one")
        for name in self.regimes:
            try:
                self.training(name)
            except ValidationError as error:
                raise ValueError(f"regimes.{name}.train: {error.errors()[0]['ctx']['error']}") from None
        return self

    def training(self, regime: str) -> Train:
        """How a regime's models are trained: the study's `train` under the regime's own."""
        changes = self.regime(regime).train
        changed = {key: getattr(changes, key) for key in changes.model_fields_set} if changes else {}
        settings = dict(self.train) | changed
        masked = self.masking.genes(self.regime(regime).genes)
        return Train.model_validate(settings | {"batch": settings["batch"] or batch(masked)})

    def split_of(self, regime: str) -> Split:
        """The split of one regime: the study's, with the regime's own seed where it has one."""
        seed = self.regime(regime).split_seed
        return self.split if seed is None else self.split.model_copy(update={"seed": seed})

    def panel_settings(self, regime: str) -> dict[str, Any]:
        """All that a regime's panel depends on, besides the source of its Census."""
        genes_from = self.genes_from or str(regime)
        chosen = {"census": {"filter", "tissues", "sample", "seed"}, "split": True, "masking": True, "genes_from": True}
        content = self.model_dump(mode="json", include=chosen, exclude_none=True)
        content["regimes"] = {
            name: self.regime(name).model_dump(exclude={"train"}, exclude_none=True)
            for name in sorted({str(regime), genes_from})
        }
        content["library_size"] = self.training(regime).library_size
        content["statistics_from"] = self.training(genes_from).statistics_from
        return content

    @property
    def data(self) -> Path:
        return io.ROOT / "data" / self.name

    @property
    def results(self) -> Path:
        """Where its results are kept in git."""
        return io.ROOT / "data" / "results" / self.name

    @property
    def figures(self) -> Path:
        return io.ROOT / "figures" / self.name

    def folder(self, regime: str) -> Path:
        self.regime(regime)
        return self.data / str(regime)

    def run_folder(self, regime: str, size: str, seed: int) -> Path:
        return self.folder(regime) / "runs" / str(size) / f"seed-{seed}"

    def regime(self, name: str) -> Regime:
        return self._named("regime", name, self.regimes)

    def size(self, name: str) -> Size:
        return self._named("size", name, {size.name: size for size in self.sizes})

    def seeds_for(self, size: str) -> list[int]:
        return self.seeds_of.get(str(size), self.seeds)

    def _named(self, kind, name, among):
        """papermill gives names of digits only as numbers."""
        if str(name) not in among:
            nearest = _nearest(name, among)
            raise InputError(f"study {self.name} has no {kind} {name!r}{nearest}; it has {', '.join(among)}.")
        return among[str(name)]


def load_study(name: str) -> Study:
    """Read and check params/<name>.yaml; an InputError names the file, the key and what is allowed."""
    path = io.ROOT / "params" / f"{name}.yaml"
    studies = sorted(file.stem for file in path.parent.glob("*.yaml"))
    if str(name) not in studies:
        raise InputError(f"there is no study {name!r}{_nearest(name, studies)}; params/ has {', '.join(studies)}.")
    try:
        content = io.parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8
        raise InputError(f"params/{path.name} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise InputError(f"params/{path.name} should hold keys such as census and sizes.")
    return parse_study(content, str(name))


def parse_study(content: dict[str, Any], name: str) -> Study:
    """Check the content of a study file; see `load_study`."""
    try:
        return Study.model_validate({**content, "name": name})
    except ValidationError as error:
        problem, *others = error.errors()
    place = "".join(f"{part}." for part in problem["loc"] if part != "[key]").rstrip(".")
    given = "" if problem["type"] in ("value_error", "missing") else f", not {problem['input']!r:.80}"
    more = f" ({len(others)} more after this one)" if others else ""
    words = [f"params/{name}.yaml:", f"{place}:" if place else "", problem["msg"].removeprefix("Value error, ")]
    raise InputError(" ".join(f"{' '.join(words)}{given}{more}.".split()))


def _nearest(word, words):
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
