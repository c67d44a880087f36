"""A kind of cell is one folder and its name in one list: one is added here, and run from a study file to its page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import brittle

ROOT = Path(brittle.__file__).parent
CELL = '''"""How bright the test images are that a model takes for its favourite class: a kind of cell of its own."""

from dataclasses import dataclass

from pydantic import Field

from brittle.attacks.result import predictions
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.table import ModelTable
from brittle.study.kinds.work import Function, Work
from brittle.study.store.cell import Outcome

NAME = "brightness"


class Table(ModelTable):
    images: int = Field(default=10, ge=1)


@dataclass(frozen=True)
class Brightness:
    name: str
    mean: float

    @classmethod
    def of(cls, name, stored, store):
        return cls(name, stored.scalars["mean"])

    def as_json(self):
        return {"table": self.name, "mean": self.mean}


Result = Brightness


def run(cell, parents, context):
    images = context.data(cell.place, cell.digest).test.images[: cell.params["images"]]
    taken = predictions(loaded("model", cell, parents, context), images)
    return Outcome({"mean": float(images[taken == taken.mode().values].mean())}, {})


def cost(cell, counts):
    return [(cell.parents["model"], Work(forwards=cell.params["images"]))]


FUNCTIONS = {"brighten": Function(1, run, cost)}
'''
VIEW = """from brittle.study.kinds.toy.cell import Brightness


def section(report):
    found = [(model.title, one) for model in report.models for one in model.results_of(Brightness)]
    return {"rows": found} if found else {}
"""
SECTION = """<section aria-labelledby="toy"><h2 id="toy">How bright</h2>
{% for title, one in toy.rows %}<p>{{ title }}: {{ '%.3f'|format(one.mean) }}</p>{% endfor %}
</section>
"""
STUDY = """name = "bright"
title = "Bright"
data = "digits"
rows = 4
training = { network = "brittle.networks.mlp", network_options = { hidden = 4 }, epochs = 1 }
models = { plain = {} }
brightness.test = { images = 20 }
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of brittle with one more kind: a folder, and its name in one list."""
    shutil.copytree(ROOT, tmp_path / "src" / "brittle", ignore=shutil.ignore_patterns("__pycache__"))
    kinds = tmp_path / "src" / "brittle" / "study" / "kinds"
    (kinds / "toy").mkdir()
    for name, text in {"__init__.py": "", "cell.py": CELL, "view.py": VIEW, "section.html": SECTION}.items():
        (kinds / "toy" / name).write_text(text)
    listed = (kinds / "__init__.py").read_text()
    assert listed.count('"units", ') == 1
    (kinds / "__init__.py").write_text(listed.replace('"units", ', '"units", "toy", '))
    (tmp_path / "bright.toml").write_text(STUDY)
    return tmp_path


def test_a_kind_that_is_added_in_one_folder_runs_from_its_study_file_to_its_page(house: Path):
    def run(*words: str) -> str:
        line = [sys.executable, "-m", "brittle", "study", "run", "bright.toml", "--store", "store", *words]
        kept = {**os.environ, "PYTHONPATH": str(house / "src"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        ran = subprocess.run(line, cwd=house, env=kept, capture_output=True, text=True, check=False)
        assert ran.returncode in (0, 2), ran.stderr
        return ran.stdout + ran.stderr

    assert "brightness.test.images: " in run("--set", "brightness.test.images=0")  # its table is checked
    run("--output", "page", "--device", "cpu", "--threads", "1")
    found = json.loads((house / "page" / "results.json").read_text())
    (bright,) = found["models"][0]["brightness"]
    assert found["missing"] == []
    assert (bright["table"], 0 < bright["mean"] < 1) == ("test", True)
    page = (house / "page" / "report.html").read_text()
    assert f"<p>plain: {bright['mean']:.3f}</p>" in page or f": {bright['mean']:.3f}</p>" in page
