"""Pictures: whatever a curve holds, there is one."""

from fspad_bench.training.plots import learning_curve


def test_a_curve_with_a_figure_that_nobody_knows_is_drawn(tmp_path):
    """Tokens a step stay empty where no probe fits the context."""
    table, picture = tmp_path / "curve.csv", tmp_path / "curve.png"
    table.write_text(
        "step,tokens,logit_loss,agreement,tokens_per_step\n1,1000,3.5,0.25,\n2,2000,3.0,0.5,1.5\n"
    )
    learning_curve(table, picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
