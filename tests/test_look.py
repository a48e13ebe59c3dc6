"""The sheet of sounds and pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.look import main, sheet

DEMO = Path(__file__).resolve().parents[1] / "demo"
SOUND, PICTURE = DEMO / "recording.wav", DEMO / "picture.jpg"


def test_a_sheet_shows_every_file(tmp_path, capsys):
    output = tmp_path / "sheet.png"
    main([*map(str, (SOUND, *[PICTURE] * 5)), "--output", str(output)])
    assert capsys.readouterr().out == f"{output}\n"
    drawn = np.asarray(Image.open(output).convert("RGB"))
    assert drawn.shape[1] > 800 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 500


def test_sounds_have_waveform_and_spectrogram_and_pictures_their_titles():
    sounds, pictures = sheet([PICTURE, SOUND, PICTURE], ["Draw a star.", "Draw it black."]).subfigs
    waveform, mel = sounds.axes
    seconds = waveform.lines[0].get_xdata()[-1]
    assert mel.images[0].get_extent() == [0, seconds, 0, 80] and 1 < seconds < 10
    assert [axis.get_title() for axis in pictures.axes] == ["Draw a star.", "Draw it black."]
    assert all(len(axis.images) == 1 for axis in pictures.axes)


@pytest.mark.parametrize("name", ["README.md", "absent.wav"])
def test_other_files_are_refused(name, capsys):
    with pytest.raises(SystemExit):
        main([str(DEMO.parent / name)])
    assert name in capsys.readouterr().err
