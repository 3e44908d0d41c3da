import pytest

from scalebrain.io.guard import RULES


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


@pytest.fixture
def codes_are_rules(monkeypatch):
    """Every code is a rule of the guard."""
    import scalebrain.io.sources as module

    real = module._in_order

    def checked(problems, prefix):
        assert {problem.code for problem in problems} <= RULES.keys()
        assert all(
            problem.message.isprintable() and problem.subject.isprintable() for problem in problems
        )
        return real(problems, prefix)

    monkeypatch.setattr(module, "_in_order", checked)
