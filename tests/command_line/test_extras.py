"""Optional packages that are missing, or that do not load beside the others."""

from pathlib import Path

import pytest

from sltt_bench.common.extras import load_extra
from sltt_bench.data.errors import DataError


@pytest.mark.parametrize(
    "body",
    ["import no_such_package", "raise RuntimeError('made for CUDA 13.0')", "import math; math.tau_", "1 / 0"],
)
def test_a_package_that_does_not_load_is_named_with_its_reason(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_for_another.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DataError,
        match=r"sound needs the package made_for_another \(.+\): pip install 'sltt-bench\[speech\]'",
    ):
        load_extra("made_for_another", "speech", "sound", DataError)
