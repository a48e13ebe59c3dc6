"""`tools/mutants.py`: its settings fit the code, and mutants that tests notice are told from the others."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tools.breakages import copy_repository
from tools.mutants import AREAS, NOTICED, SETTINGS, SURVIVED, Area, all_mutants, change_of, draw, run, write_settings

ROOT = Path(__file__).resolve().parents[1]


def functions_of(file: str) -> set[str]:
    """`function` and `Class.method` of a file."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    methods = {
        f"{node.name}.{each.name}" for node in classes for each in node.body if isinstance(each, ast.FunctionDef)
    }
    return methods | {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_a_draw_is_repeatable_and_a_part_of_a_larger_one():
    names = [f"m.x_f__mutmut_{number}" for number in range(50)]
    assert draw(names, 5, 1, []) == draw(names[::-1], 5, 1, []) != draw(names, 5, 2, [])
    assert set(draw(names, 5, 1, [])) < set(draw(names, 9, 1, [])) and draw(names, 5, 1, ["*_7"]) == [names[7]]


@pytest.mark.parametrize("area", AREAS.values(), ids=AREAS)
def test_functions_and_tests_of_an_area_exist(area):
    for file, patterns in area.functions.items():
        functions = functions_of(file)
        assert all(any(fnmatch(name, pattern) for name in functions) for pattern in patterns), file
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
