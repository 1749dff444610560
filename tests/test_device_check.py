"""The check of one device, dry: its parts run at toy sizes on CPU, and its table holds numbers."""

import json

import numpy as np

from benchmarks import device, device_parity


def test_a_section_runs_and_the_table_holds_its_numbers(tmp_path, capsys):
    assert device.main(["--tiny", "--only", "ceilings", "decode-0.6b", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "device.json").read_text())
    assert [row["what"] for row in report["sections"]["ceilings"]["rows"]] == ["copy", "product"]
    rates = [row["value"] for row in report["sections"]["decode-0.6b"]["rows"] if "tokens/s" in row["shown"]]
    assert len(rates) == 3
    assert min(rates) > 0
    table = (tmp_path / "device.md").read_text()
    assert "| decode, batch 1 |" in table
    assert "% of the bound" in table
    assert table in capsys.readouterr().out


def test_an_unknown_section_is_one_line(tmp_path, capsys):
    assert device.main(["--only", "decode-9b", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_section_without_time_is_said(tmp_path):
    assert device.main(["--tiny", "--only", "parity", "--seconds", "1", "--out", str(tmp_path)]) == 0
    assert "left out: no time left" in (tmp_path / "device.md").read_text()


def test_attention_by_numpy_has_the_gradients_of_its_definition():
    """Against a difference quotient, in float64."""
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (rng.standard_normal((1, 6, heads, 4)) for heads in (4, 2, 2, 4))
    ids = np.array([[0, 0, 0, 1, 1, 1]])
    _, gradients = device_parity._numpy_attention(q, k, v, ids, cotangent)
    for number, gradient in enumerate(gradients):
        inputs, step = [q.copy(), k.copy(), v.copy()], 1e-6
        for sign in (1, -1):
            inputs[number][0, 2, 1, 3] = (q, k, v)[number][0, 2, 1, 3] + sign * step
            value = np.sum(device_parity._numpy_attention(*inputs, ids, cotangent)[0] * cotangent)
            up, down = (value, 0.0) if sign == 1 else (up, value)
        np.testing.assert_allclose(gradient[0, 2, 1, 3], (up - down) / (2 * step), rtol=1e-6, atol=1e-9)
