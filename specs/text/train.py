"""Trains a small GPT-2 on the characters of a text with Hugging Face's Trainer, as a plan of ratc's says."""

import argparse
from pathlib import Path

import ratc_runtime
import torch
from ratc_runtime.integrations.transformers import PlanCallback, last_checkpoint, training_arguments
from torch.utils.data import Dataset

# isort: split
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer

HERE = Path(__file__).parent
LENGTH = 32


class Pieces(Dataset):
    """Overlapping pieces of a text: `input_ids` and `labels` of LENGTH tokens each."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokens = torch.tensor(tokenizer(text)["input_ids"])

    def __len__(self) -> int:
        return (len(self.tokens) - LENGTH) // 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        piece = self.tokens[8 * index : 8 * index + LENGTH]
        return {"input_ids": piece, "labels": piece}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    given = parser.parse_args()
    plan = ratc_runtime.plan()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer.json"))
    torch.manual_seed(plan["seed"])
    size = GPT2Config(vocab_size=len(tokenizer), n_positions=LENGTH, n_embd=32, n_layer=1, n_head=2)
    trainer = Trainer(
        model=GPT2LMHeadModel(size),
        args=training_arguments(plan, logging_steps=10, save_strategy="epoch", save_total_limit=2),
        train_dataset=Pieces(given.text.read_text(), tokenizer),
        callbacks=[PlanCallback(plan)],
    )
    start = last_checkpoint(plan)
    if start is not None:
        print(f"going on from {start}")
    trainer.train(resume_from_checkpoint=start)
    plan.leave()


if __name__ == "__main__":
    main()
