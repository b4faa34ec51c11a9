"""Which cells of a Census a study asks for: its filter or the default, with every label checked."""

import ast
import difflib

from lib.data import census
from lib.io import InputError

PRIMARY = "is_primary_data == True"
"""The default filter: no cell that another data set holds as well."""
UMI = [
    "10x 3' transcription profiling", "10x 3' v1", "10x 3' v2", "10x 3' v3", "10x 3' v4",
    "10x 5' transcription profiling", "10x 5' v1", "10x 5' v2", "10x 5' v3", "10x gene expression flex",
    "10x multiome", "5' STRT-seq", "Asteria scRNA-seq kit", "BD Rhapsody Whole Transcriptome Analysis", "CEL-seq2",
    "DroNc-seq", "Drop-seq", "GEXSCOPE technology", "HIVE CLX Single-Cell RNAseq Solution", "MARS-seq",
    "Parse Evercode Whole Transcriptome v1", "Parse Evercode Whole Transcriptome v2",
    "Parse Evercode Whole Transcriptome v3", "SHARE-seq", "SORT-seq", "SPLiT-seq",
    "ScaleBio single cell RNA sequencing", "Seq-Well", "Seq-Well S3", "TruDrop", "inDrop", "microwell-seq",
    "modified STRT-seq", "particle-templated instant partition sequencing", "sci-CAR", "sci-Plex", "sci-RNA-seq",
    "sci-RNA-seq3", "snDrop-seq",
]  # fmt: skip
"""Assays of the Census whose counts are molecules of the whole transcriptome. Left out: full-length methods such as
Smart-seq, whose counts are reads; targeted panels; labels that leave it open, such as STRT-seq."""
GRAMMAR = (
    ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.BitAnd, ast.BitOr, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE,
    ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Name, ast.Load, ast.Constant, ast.List, ast.Call, ast.UnaryOp, ast.USub,
)  # fmt: skip
"""The parts of Python's syntax that a filter of the Census is made of."""


def condition(collection, source):
    """The filter in force: that of the study or the default of this Census, and census.tissues.

    The default of a public release is primary data from normal tissue (not from a culture, where the Census says so)
    by an assay that counts molecules; elsewhere it is primary data.

    Raises
    ------
    InputError
        It is no condition, or names a column or a label that the Census lacks: such a label gives no cells, and no
        error either.
    """
    obs, clauses = table(collection), [PRIMARY if source.filter is None else source.filter]
    if source.filter is None and (source.version or census.is_release(collection)):
        known = _labels(collection, obs, "assay")
        assays = [assay for assay in UMI if assay in known]
        if not assays:
            raise InputError(
                "no assay of this Census is known to count molecules; choose its cells with census.filter."
            )
        clauses += ["tissue_type == 'tissue'"] if "tissue_type" in obs.schema.names else []  # since schema 2.2.0
        clauses += ["disease == 'normal'", f"assay in {assays}"]
    if source.tissues:
        clauses.append(f"tissue_general in {source.tissues}")
    for clause in clauses:
        _check(collection, obs, clause)
    return clauses[0] if len(clauses) == 1 else " and ".join(f"({clause})" for clause in clauses)


def table(collection):
    """The obs table of an open Census."""
    return census.fetch(collection, lambda: collection["census_data"][census.ORGANISM].obs)


def _labels(collection, obs, column):
    """The labels of a categorical obs column."""
    return census.fetch(collection, lambda: obs.get_enumeration_values([column])[column].to_pylist())


def _check(collection, obs, clause):
    import pyarrow as pa

    try:
        nodes = list(ast.walk(ast.parse(clause, mode="eval").body))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep
        nodes = [None]
    if not all(isinstance(node, GRAMMAR) for node in nodes):
        raise InputError(f"census.filter {clause!r} is no condition such as \"sex == 'female' and nnz > 500\".")
    for comparison in (list(ast.walk(node)) for node in nodes if isinstance(node, ast.Compare)):
        values = [node.value for node in comparison if isinstance(node, ast.Constant)]
        for column in (node.id for node in comparison if isinstance(node, ast.Name)):
            if column in ("attr", "val"):
                continue
            if column not in obs.schema.names:
                raise InputError(
                    f"census.filter {clause!r}: no obs column is {column}; there are {', '.join(obs.schema.names)}."
                )
            if pa.types.is_dictionary(obs.schema.field(column).type):
                _check_labels(clause, column, values, _labels(collection, obs, column))


def _check_labels(clause, column, values, labels):
    for value in values:
        if value not in labels:
            close = difflib.get_close_matches(str(value), labels, n=1, cutoff=0)
            nearest = f"; the nearest label is {close[0]!r}" if close else ""
            raise InputError(f"census.filter {clause!r}: the Census has no {column} {value!r}{nearest}.")
