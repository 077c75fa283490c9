"""Writes the Croissant metadata of a folder of results: `python -m sltt_bench.results.croissant results`.

Croissant (docs.mlcommons.org/croissant) tells search engines and data loaders which files and columns exist.
Its readers stop at a file that lacks a column named in the metadata. So the metadata name only columns that
all files of a kind have; files of later runs have them too.
"""

import json
import sys
from pathlib import Path
from typing import Any

from sltt_bench import __version__
from sltt_bench.results.schema import FILES, Column
from sltt_bench.results.tables import whole_lines


def _own(*terms: str) -> dict[str, str]:
    """Returns the terms as those of the same name in Croissant."""
    return {term: f"cr:{term}" for term in terms}


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **_own("citeAs", "column"),
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    **_own("equivalentProperty"),
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **_own(
        "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes", "isLiveDataset"
    ),
    **_own("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
    **_own("replace", "samplingRate"),
    "sc": "https://schema.org/",
    **_own("separator", "source", "subField", "transform"),
}
"""The terms of Croissant 1.0, which its specification requires in every file."""

_TYPES = {"int": "sc:Float", "float": "sc:Float", "bool": "sc:Boolean", "str": "sc:Text"}
"""An int is a Float here, since it may be missing, and readers accept that only for Float."""


def croissant(folder: Path) -> dict[str, Any]:
    """Returns the metadata of all runs below `folder`, as JSON-LD."""
    columns = {file: _columns_of_all(sorted(folder.glob(f"*/*/{file}")), file) for file in FILES}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "sltt-bench-results",
        "description": (
            "Peak memory, time and accuracy of training methods for spiking neural networks (BPTT, SLTT, SLTT-K and "
            "others), measured by sltt-bench: one row for each cell (recipe, method, backend, seed) and each epoch. "
            "Columns that only later runs have are in the files, not in these metadata; README.md beside them explains all."
        ),
        "license": "https://spdx.org/licenses/MIT.html",
        "creator": {"@type": "sc:Organization", "name": "the sltt-bench developers"},
        "citeAs": (
            "Meng et al., Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks, "
            "ICCV 2023, arXiv:2302.14311"
        ),
        "version": __version__,
        "isLiveDataset": True,
        "distribution": [_file_set(file) for file in FILES if columns[file]],
        "recordSet": [_record_set(file, columns[file]) for file in FILES if columns[file]],
    }


def _columns_of_all(paths: list[Path], file: str) -> list[Column]:
    """Returns the columns that all of these files of one kind have; none if there are no files."""
    headers = [set(lines[0][1]) for path in paths if (lines := whole_lines(path, []))]
    return [column for column in FILES[file] if headers and all(column.name in header for header in headers)]


def _file_set(file: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": file,
        "name": file,
        "description": f"{file} of every run, below RECIPE/RUN/",
        "encodingFormat": "text/csv",
        "includes": f"*/*/{file}",
    }


def _record_set(file: str, columns: list[Column]) -> dict[str, Any]:
    name = file.removesuffix(".csv")
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column.name}",
                "name": column.name,
                "description": column.meaning,
                "dataType": _TYPES[column.type],
                "source": {"fileSet": {"@id": file}, "extract": {"column": column.name}},
            }
            for column in columns
        ],
    }


if __name__ == "__main__":
    print(json.dumps(croissant(Path(sys.argv[1])), indent=1, ensure_ascii=False))
