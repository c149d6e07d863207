"""A reader's copy of published values: faults are reported, and correct values appear beside MedPFL's."""

from __future__ import annotations

import pytest

from medpfl import InputError
from medpfl.reproduction.published import beside, read_published

KNOWN = {"attacks": {"DLG": ["NoDefense()"]}, "noise": {"iDLG": ["NoDefense()", "LaplaceNoise(scale=0.01)"]}}
SETS = ("melanoma", "brain_mri")
LAPLACE = "LaplaceNoise(scale=0.01)"


def read(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_published(path, KNOWN, SETS)


def row(**more):
    own = {"experiment": "noise", "set": "melanoma", "part": "iDLG", "defense": LAPLACE, "knows_defense": False}
    return {**own, "asr": 0.5, "asr_low": 0.3, "asr_high": 0.7, "ssim": 0.61, **more}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set,attack,asrr\n", "has an unknown column 'asrr'; did you mean 'asr'"),
        ("set,asr\n", "has no column 'attack'"),
        ("set,attack\n", "holds no values"),
        ("", "has no column 'set'"),
        (
            "set,attack,asr\nmelanom,DLG,0.5\n",
            "line 2: there is no set 'melanom' in the study; did you mean 'melanoma'",
        ),
        ("set,attack,asr\nmelanoma,DLGG,0.5\n", "line 2: there is no attack 'DLGG' in the study; did you mean 'DLG'"),
        ("experiment,set,attack,asr\nnois,melanoma,DLG,1\n", "no experiment 'nois' in the study; did you mean 'noise'"),
        ("experiment,set,attack,asr\nnoise,melanoma,DLG,1\n", "there is no attack 'DLG' in the study"),
        ("set,attack,defense,asr\nmelanoma,iDLG,LaplaceNoise(scale=0.02),1\n", "there is no defense"),
        ("set,attack,asr\nmelanoma,DLG,0.5\nmelanoma,DLG,high\n", "line 3: asr is 'high', which is not a number"),
        ("set,attack,asr\nmelanoma,DLG,97\n", "asr is '97': write a share such as 0.97, or 97 %"),
        ("set,attack,ssim\nmelanoma,DLG,nan\n", "ssim is 'nan': write a plain number"),
        ("set,attack,ssim\nmelanoma,DLG,97 %\n", "ssim is '97 %': write a plain number"),
        ("set,attack,asr\nmelanoma,DLG\n", "line 2: the line has more or fewer fields"),
        ("set,attack,asr\nmelanoma,DLG,1,2\n", "line 2: the line has more or fewer fields"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert message in str(error.value)


def test_no_table(tmp_path):
    with pytest.raises(InputError, match=r"--published '.*' cannot be read"):
        read_published(tmp_path / "none.csv", KNOWN, SETS)


def test_values_stand_beside_ours(tmp_path):
    lines = read(
        tmp_path,
        f"set, attack,defense,asr,ssim\nmelanoma,iDLG,{LAPLACE},65 %,\nbrain_mri,iDLG,no defense,,0.5\n",
    )
    assert [line.values for line in lines] == [{"asr": 0.65}, {"ssim": 0.5}]
    assert [line.defense for line in lines] == [LAPLACE, "NoDefense()"]
    text = beside(lines, [row(), row(knows_defense=True, asr=0.9), row(set="brain_mri")])
    assert [line for line in text.splitlines() if line.startswith("| melanoma") or line.startswith("| brain")] == [
        f"| melanoma | iDLG | {LAPLACE} | ASR | 65 % | 50 % (30\u201370 %) | yes |"
    ]
    assert "| no |" in beside(lines, [row(asr_high=0.6)])
    assert beside(lines, [row(part="DLG")]) == ""
