"""`tools/mutants.py`: its settings fit the code, and mutants that tests notice are told from the others."""

import ast
from pathlib import Path

import pytest

from tools.breakages import copy_repository
from tools.mutants import AREAS, NOTICED, SETTINGS, SURVIVED, Area, all_mutants, change_of, draw, run, write_settings

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("area", AREAS.values(), ids=AREAS)
def test_functions_and_tests_of_an_area_exist(area, tmp_path):
    write_settings(area, tmp_path)
    for file in area.functions:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    names = all_mutants(area, tmp_path)
    assert len(names) > area.mutants and draw(names, 5, 1, []) == draw(names, 5, 1, []) != draw(names, 5, 2, [])
    for test in (*area.tests, *area.skip):
        path, _, name = test.partition("::")
        source = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in tests, test


def test_explained_mutants_change_lines_that_stand_in_the_code():
    for entry in SETTINGS["survivors"]:
        module = entry["function"]
        while not (ROOT / f"{module.replace('.', '/')}.py").is_file():
            module = module.rpartition(".")[0]
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        lines = {line.strip() for line in source.splitlines()}
        gone = [line[2:] for line in entry["change"].strip().splitlines() if line.startswith("- ")]
        assert set(gone) <= lines and len(entry["reason"]) > 10, entry["function"]


def test_a_mutant_is_noticed_by_the_tests_of_its_function_alone(tmp_path):
    """`speech_units` with a test that asks for its result, `_raise_if_no_bound` without any."""
    functions = {"ming/speech_text.py": ["speech_units", "_raise_if_no_bound"]}
    area = Area("short", functions, ["tests/test_speech_text.py::test_nothing_to_say"], 2)
    copy_repository(tmp_path)
    write_settings(area, tmp_path)
    names = ["ming.speech_text.x_speech_units__mutmut_1", "ming.speech_text.x__raise_if_no_bound__mutmut_1"]
    assert set(names) < set(all_mutants(area, tmp_path))
    words = run(area, names, tmp_path)
    assert words[names[0]] in NOTICED and words[names[1]] in SURVIVED
    assert change_of(names[0], tmp_path).startswith("- return sum(")
