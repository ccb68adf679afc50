"""Images in files, decoded by the workers of a DataLoader, in balanced batches; killed at any step, it goes on.

python examples/images.py --folder digits --max-steps 50   # ends in the second epoch
python examples/images.py --folder digits                  # the rest of the second epoch, and the third
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import fastbalance as fb


class Images(Dataset):
    """`folder/<class>/<any name>.jpg`; an item is pixels, class and row."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*/*.jpg"))
        self.targets = [int(path.parent.name) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int, int]:
        with Image.open(self.paths[row]) as image:
            pixels = np.asarray(image.convert("L"), np.float32) / 255
        return torch.from_numpy(pixels)[None], self.targets[row], row

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, int, int]]:
        """A whole batch: the place for one request to a server, instead of one for each row."""
        return [self[row] for row in rows]


def main(
    folder: Path = Path("digits"), epochs: int = 3, max_steps: int = 1000, save_every: int = 10, workers: int = 2
) -> None:
    if not folder.exists():
        write_digits(folder)
    data = Images(folder / "train")
    sampler = fb.BalancedBatchSampler(data, 32, label=lambda data: data.targets)  # decodes no image
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, stride=2), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.LazyLinear(10),
    )  # fmt: skip
    model(data[0][0][None])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

    step, checkpoint = 0, folder / "run.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        sampler.load_state_dict(saved["sampler"])
        step = saved["step"]

    for _ in range(step // len(loader), epochs):
        for seen, (pixels, classes, rows) in enumerate(loader, start=1):
            loss = torch.nn.functional.cross_entropy(model(pixels), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            print(f"step {step} loss {loss.item():.4f} rows {' '.join(map(str, rows.tolist()))}")
            if step % save_every == 0:  # the workers are ahead of this batch; `seen` says where training is
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state | {"sampler": sampler.state_dict(seen=seen)}, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)  # whole, or the one before
            if step == max_steps:
                return

    right = torch.zeros(10)
    with torch.no_grad():
        for pixels, classes, _ in DataLoader(Images(folder / "test"), batch_size=100):
            right += torch.bincount(classes[model(pixels).argmax(1) == classes], minlength=10)
    print("class: images trained on, recall on 30 others")
    for c, n_images in enumerate(sampler.class_counts):
        print(f"{c}: {n_images}, {right[c] / 30:.0%}")


def write_digits(folder: Path) -> None:
    """Scikit-learn's digits as JPEG: 30 of each class for testing; of the others 140 zeros, and down to 8 nines."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    for c in range(10):
        images = pixels[classes == c].reshape(-1, 8, 8)
        for part, some in {"test": images[:30], "train": images[30 : 30 + round(140 * 0.73**c)]}.items():
            (folder / part / str(c)).mkdir(parents=True)
            for k, image in enumerate(some):
                picture = Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16))
                picture.save(folder / part / str(c) / f"{k:03}.jpg")


if __name__ == "__main__":
    typer.run(main)
