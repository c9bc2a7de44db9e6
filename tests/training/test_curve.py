"""Every learning curve has a picture."""

from fspad_bench.training.curve import draw


def test_a_curve_with_an_unknown_figure_is_drawn(tmp_path):
    """Tokens per step are empty where no prompt fits the context."""
    table = tmp_path / "curve.csv"
    picture = tmp_path / "curve.png"
    table.write_text(
        "step,tokens,logit_loss,agreement,tokens_per_step\n1,1000,3.5,0.25,\n2,2000,3.0,0.5,1.5\n"
    )
    draw(table, picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
