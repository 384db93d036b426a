"""vssm.mm imports where no home folder is known: HOME unset, and a user without an account."""

import os
import pwd
import runpy
import sys

import pytest

import vssm.mm


def test_a_home_is_named_before_mmengine_is_imported(monkeypatch):
    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setitem(sys.modules, "mmengine", None)  # the import ends there
    monkeypatch.setenv("HOME", "")  # so that monkeypatch takes back what the import sets
    monkeypatch.delenv("HOME")
    assert os.path.expanduser("~") == "~"
    with pytest.raises(ImportError, match="mmengine: pip install"):
        runpy.run_path(vssm.mm.__file__)
    assert os.path.isabs(os.path.expanduser("~"))
