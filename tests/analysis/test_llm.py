"""A program that names concepts: what it reads, and what becomes of one that fails, hangs or says nothing."""

import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from cocomix.analysis import ConceptName, Passage, TokenScore, name_with
from cocomix.analysis.naming import GIVE_UP_AFTER, question
from cocomix.utils.errors import CocomixError

CONCEPTS = [
    ConceptName(
        concept=concept,
        name=f"automatic {concept}" if concept else None,
        occurrences=100,
        tokens=[TokenScore(token=" war", score=0.5)],
        passages=[Passage(before="to", token=" war", after=" again", activation=2.0)],
    )
    for concept in range(6)
]


def program(folder: Path, *lines: str) -> str:
    script = folder / "a program.py"
    script.write_text("\n".join(["import json, sys, time, subprocess", *lines]))
    return shlex.join([sys.executable, str(script)])


def test_it_reads_the_passages_and_its_first_line_is_the_name(tmp_path: Path) -> None:
    command = program(
        tmp_path,
        "asked = json.load(sys.stdin)",
        f"open({str(tmp_path / 'asked')!r}, 'a').write(json.dumps(asked) + chr(10))",
        "print(); print(' about' + asked['passages'][0]['token'], asked['concept'], '$(echo no shell) ')",
        "print('more')",
    )
    named, problems = name_with(command, CONCEPTS, seconds=60)
    assert not problems
    assert [one.name for one in named] == [f"about war {c} $(echo no shell)" for c in range(len(CONCEPTS))]
    assert {one.source for one in named} == {"llm"}
    read = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert read == [question(one) for one in CONCEPTS] and read[1]["automatic_name"] == "automatic 1"


def test_concepts_too_rare_are_not_asked_for(tmp_path: Path) -> None:
    rare = [one.model_copy(update={"occurrences": 3}) for one in CONCEPTS]
    assert name_with(program(tmp_path, "print('x')"), rare, seconds=60) == (rare, [])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["sys.exit('out of memory')"], "ended with code 1 (out of memory)"),
        (["print('  ')"], "printed no name"),
    ],
)
def test_a_failure_leaves_the_automatic_name(tmp_path: Path, lines: list[str], words: str) -> None:
    named, problems = name_with(program(tmp_path, *lines), CONCEPTS, seconds=60)
    assert named == CONCEPTS
    assert len(problems) == GIVE_UP_AFTER + 1 and all(words in problem for problem in problems[:-1])
    assert f"{len(CONCEPTS) - GIVE_UP_AFTER} concepts were not asked for" in problems[-1]


def test_a_failure_now_and_then_does_not_stop_it(tmp_path: Path) -> None:
    command = program(tmp_path, "c = json.load(sys.stdin)['concept']", "sys.exit(3) if c % 2 else print('even')")
    named, problems = name_with(command, CONCEPTS, seconds=60)
    assert [one.name for one in named] == [CONCEPTS[c].name if c % 2 else "even" for c in range(len(CONCEPTS))]
    assert len(problems) == len(CONCEPTS) // 2


def test_a_program_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    child = f"import time\nwhile True:\n open({str(beat)!r}, 'a').write('x')\n time.sleep(0.01)"
    command = program(
        tmp_path,
        f"subprocess.Popen([sys.executable, '-c', {child!r}])",
        f"while not __import__('os').path.exists({str(beat)!r}): time.sleep(0.01)",
        "time.sleep(1000)",
    )
    named, problems = name_with(command, CONCEPTS[:1], seconds=3)
    assert named == CONCEPTS[:1] and "said nothing for 3 seconds" in problems[0]
    before = beat.stat().st_size
    time.sleep(0.2)
    assert before and beat.stat().st_size == before


def test_commands_that_cannot_be_run(tmp_path: Path) -> None:
    named, problems = name_with("./no-such-program", CONCEPTS, seconds=1)
    assert named == CONCEPTS and "cannot be started" in problems[0]
    for command, words in (("", "names no program"), ("'half", "fix its quotes")):
        with pytest.raises(CocomixError, match=words):
            name_with(command, CONCEPTS, seconds=1)
