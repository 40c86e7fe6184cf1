"""A checkpoint counts when it is whole, and only then."""

from pathlib import Path

import pytest

from realloc.core.checkpoint_folder import (
    MANIFEST,
    MARKER,
    CheckpointFolder,
    Manifest,
    SavedFile,
)


def manifest(iteration: int) -> Manifest:
    return Manifest(
        job_id="job",
        iteration=iteration,
        weight_versions={"actor": 2 * iteration},
        kl_coefficient=0.05,
        layouts={"actor": "megatron:d1t2p1@0,1"},
        architectures={"actor": {"num_layers": 2, "rope_scaling": [["factor", 8.0]]}},
        data_rows=64,
        files=(SavedFile(name="rank-00000.safetensors", bytes=3, sha256="0" * 64),),
        tensors={"actor/model.norm.weight": (0,)},
    )


def save(folder: CheckpointFolder, iteration: int) -> Path:
    (folder.begin(iteration) / "rank-00000.safetensors").write_bytes(b"abc")
    return folder.commit(manifest(iteration))


def test_the_newest_is_found_as_it_was_written(tmp_path: Path) -> None:
    """Everything in the manifest comes back."""
    folder = CheckpointFolder(tmp_path / "new" / "folder")
    assert folder.look().newest is None
    save(folder, 2)
    path = save(folder, 10)
    found = folder.look()
    assert found.newest is not None
    assert (found.newest.path, found.broken) == (path, ())
    assert found.newest.manifest == manifest(10)
    assert found.newest.manifest.num_bytes == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / MARKER).unlink(), "was not finished"),
        (lambda path: (path / MANIFEST).write_text("{"), "cannot be read"),
        (lambda path: (path / MANIFEST).unlink(), "cannot be read"),
        (
            lambda path: (path / MANIFEST).write_text(
                (path / MANIFEST).read_text().replace('"format": 1', '"format": 2')
            ),
            "has format 2; this version reads 1",
        ),
        (lambda path: (path / "rank-00000.safetensors").unlink(), "No such file"),
        (
            lambda path: (path / "rank-00000.safetensors").write_bytes(b"ab"),
            "has 2 bytes and had 3 when written",
        ),
    ],
)
def test_a_torn_one_does_not_count(tmp_path: Path, damage, reason: str) -> None:  # type: ignore[no-untyped-def]  # lambdas
    """The one before it is taken, and the reason is told."""
    folder = CheckpointFolder(tmp_path)
    before = save(folder, 2)
    damage(save(folder, 4))
    found = folder.look()
    assert found.newest is not None
    assert found.newest.path == before
    assert len(found.broken) == 1
    assert "iteration-00000004" in found.broken[0]
    assert reason in found.broken[0]


def test_one_that_is_being_written_is_not_seen(tmp_path: Path) -> None:
    """Before the rename there is nothing; the next writer removes what was left."""
    folder = CheckpointFolder(tmp_path)
    left = folder.begin(2)
    (left / "rank-00000.safetensors").write_bytes(b"abc")
    assert folder.look().newest is None
    assert folder.look().broken == ()
    save(folder, 3)
    assert not left.exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Older ones go, torn ones older than those kept go too; a torn newer one stays to be seen."""
    folder = CheckpointFolder(tmp_path)
    for iteration in (1, 2, 3, 4, 5):
        save(folder, iteration)
    for iteration in (2, 5):
        (tmp_path / f"iteration-{iteration:08d}" / MARKER).unlink()
    folder.prune(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iteration-00000003",
        "iteration-00000004",
        "iteration-00000005",
    ]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    """A job that repeats an iteration saves it over the earlier try."""
    folder = CheckpointFolder(tmp_path)
    path = save(folder, 2)
    (path / "more").touch()
    assert save(folder, 2) == path
    assert not (path / "more").exists()
    assert folder.look().newest is not None
