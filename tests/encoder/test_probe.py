import torch

from timelapse.encoder.probe import accuracy, effective_rank, probe, r2, ridge


def test_ridge_recovers_a_noiseless_line_in_both_of_its_forms():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 2, generator=g, dtype=torch.float64)
    for n in (40, 5):  # more samples than features, and fewer
        x = torch.randn(n, 6, generator=g, dtype=torch.float64)
        y = x @ weight + 3
        found, x_mean, y_mean = ridge(x, y, 1e-9)
        torch.testing.assert_close((x - x_mean) @ found + y_mean, y, atol=1e-5, rtol=1e-5)
    dense, *_ = ridge(x.repeat(3, 1), y.repeat(3, 1), 0.1)  # three copies of the samples: the penalty is relative
    torch.testing.assert_close(dense, ridge(x, y, 0.1)[0], atol=1e-8, rtol=1e-8)


def test_scores_of_known_answers():
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert r2(y.double(), y) == 1 and abs(r2(y.double().mean(0).expand(4, 2), y)) < 1e-12
    assert accuracy(y[[0, 1, 2, 2]], y) == 0.75


def test_probe_finds_signal_and_does_not_find_noise():
    g = torch.Generator().manual_seed(1)
    x, x_test = torch.randn(400, 20, generator=g), torch.randn(200, 20, generator=g)
    line = torch.randn(20, 1, generator=g)
    noise, noise_test = torch.randn(400, 1, generator=g), torch.randn(200, 1, generator=g)
    assert probe(x, x @ line, x_test, x_test @ line) > 0.999
    assert abs(probe(x, noise, x_test, noise_test)) < 0.15


def test_effective_rank_counts_equal_directions():
    g = torch.Generator().manual_seed(2)
    q, _ = torch.linalg.qr(torch.randn(400, 5, generator=g) - 0.0)
    q, _ = torch.linalg.qr(q - q.mean(0))  # centred, orthonormal columns: five equal eigenvalues
    assert abs(effective_rank(q).item() - 5) < 1e-3
    assert abs(effective_rank(q[:, :1] @ torch.randn(1, 7, generator=g)).item() - 1) < 1e-3
