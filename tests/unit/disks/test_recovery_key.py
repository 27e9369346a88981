"""The recovery key is on the box until a person has written it down, and not a moment less."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import ControlError
from appliance.manage import box

KEY = "cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-vtrnlkji"


def test_it_goes_only_to_whoever_has_it_on_paper(tmp_path: Path) -> None:
    where = tmp_path / "recovery-key"
    where.write_text(KEY)
    assert box.recovery_key(where) == KEY
    for wrong in ("", "vtrnlkjc", "vtrn", "cbdefghi"):
        with pytest.raises(ControlError):
            box.check_letters(wrong, where)
    box.check_letters(" VTRNLKJI\n", where)
    assert where.exists()
    box.forget_recovery_key(where)
    with pytest.raises(ControlError, match="not on the box"):
        box.recovery_key(where)
    with pytest.raises(ControlError):
        box.check_letters("vtrnlkji", where)
