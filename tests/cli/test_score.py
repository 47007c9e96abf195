import json
import sys

from lerobot_smoothvla.cli.main import main


def test_a_dataset_whose_names_tell_nothing_is_scored_by_what_is_asked_for(
    tiny_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["smoothvla", "score", "--dataset.repo_id=smoothvla/tiny", f"--dataset.root={tiny_dataset}"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("smoothvla score: error: The names of the dataset's features do not tell")

    where = ["--position.key=observation.state", "--position.dims=[0,1,2]", "--position.unit=m", "--fps=20"]
    monkeypatch.setattr(sys, "argv", [*command, *where])
    assert main() == 0
    assert "2 episodes, 40 frames at 20 frames a second" in capsys.readouterr().out
    info = json.loads((tmp_path / "outputs/score/tiny/score.json").read_text())
    assert [row["n_frames"] for row in info["per_episode"]] == [20, 20]
    assert (tmp_path / "outputs/score/tiny/score.html").is_file()
