"""A small data set in the files of Planetoid's Cora, so that examples run without a download."""

import pickle
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, csr_matrix

N_NODES, N_CLASSES, N_WORDS = 720, 3, 24
N_TRAIN, N_VALIDATION, N_TEST = 60, 500, 100  # PyTorch Geometric takes 500 for validation


def write_planetoid(root: Path) -> Path:
    """Write documents of three classes, which share words and mostly cite their own; returns `root`."""
    random = np.random.default_rng(0)
    label = random.integers(N_CLASSES, size=N_NODES)
    is_own = np.arange(N_WORDS) % N_CLASSES == label[:, None]
    words = (random.random((N_NODES, N_WORDS)) < np.where(is_own, 0.5, 0.1)).astype(np.float32)
    words[:, 0] = 1  # no document is empty
    cited = random.integers(N_NODES, size=(N_NODES, 8))
    cited = np.where(label[cited] == label[:, None], cited, cited[:, :1])
    graph = {node: sorted({*map(int, row)}) for node, row in enumerate(cited)}
    features, one_hot = csr_matrix(csr_array(words)), np.eye(N_CLASSES, dtype=np.int32)[label]
    n_known = N_NODES - N_TEST
    parts = {"": slice(N_TRAIN), "all": slice(n_known), "t": slice(n_known, None)}
    files = {f"{name}x": features[part] for name, part in parts.items()}
    files |= {f"{name}y": one_hot[part] for name, part in parts.items()}
    folder = root / "Cora" / "raw"
    folder.mkdir(parents=True)
    for name, content in {**files, "graph": graph}.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(content))
    index = "\n".join(map(str, range(n_known, N_NODES)))
    (folder / "ind.cora.test.index").write_text(index)
    return root
