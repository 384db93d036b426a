"""The quick ones of tests/clients.py, for a plain model and a pyramid; those that are not installed are skipped."""

import pytest
from clients import CLIENTS
from families import CLASSES, model_class

from vssm.models import Plain

TWO = [next(kind for kind in CLASSES if issubclass(model_class(kind[0]), Plain) == plain) for plain in (True, False)]


@pytest.mark.parametrize("kind", TWO, ids=lambda kind: kind[0])
@pytest.mark.parametrize(
    "client", [each for each in CLIENTS if not each.slow], ids=lambda each: f"{each.name}, {each.what}"
)
def test_client(client, kind):
    if not client.installed:
        pytest.skip(f"needs {client.name}")
    client.check(kind)
