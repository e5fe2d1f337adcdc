"""Text that the model writes itself, from short openings of our own: calibration without any data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from bitwright.data.draw import draw
from bitwright.data.tokenizer import bos_prefix
from bitwright.errors import fail
from bitwright.host.progress import Reporter

# Encyclopedia and science; news, advice and letters; stories; questions and school; code; other languages.
OPENINGS: tuple[str, ...] = (
    "The river rises in the northern mountains and",
    "In 1874 the council decided to build",
    "The species was first described by",
    "She was born in a small town near",
    "The battle began at dawn when the",
    "A prime number is a natural number that",
    "The album was recorded over two weeks and",
    "Its population at the last census was",
    "The cathedral stands on the site of",
    "During the second half of the season the team",
    "The planet's atmosphere consists mostly of",
    "The treaty was signed after years of",
    "Photosynthesis converts light into",
    "The railway line was opened in",
    "As a young officer he served in",
    "The film received mixed reviews from",
    "Volcanic activity on the island has",
    "The novel follows three sisters who",
    "Her research concerned the behaviour of",
    "The ship left the harbour with a crew of",
    "Officials said on Tuesday that the new",
    "Here are five ways to make your",
    "I bought this kettle last month and",
    "Dear Ms Ortega, thank you for your",
    "The company reported earnings of",
    "To make the dough, mix the flour with",
    "My landlord told me yesterday that",
    "If your car does not start in the morning",
    "The best time to visit the coast is",
    "Our products ship within two working days and",
    "Many parents worry that their children",
    "Before you sign the contract, check whether",
    "The old woman closed the door and said",
    '"Where were you last night?" he asked.',
    "Nobody in the village remembered the",
    "It was raining when the bus finally",
    "Mia and her dog found a small",
    "The detective looked at the photograph and",
    "Question: Why is the sky blue?\nAnswer:",
    "Explain how a bicycle stays upright.",
    "Q: What is the capital of Peru?\nA:",
    "Write a short poem about winter.",
    "Solve for x: 3x + 7 = 22.",
    "Tom has 12 apples and gives away 5.",
    "User: How do I boil an egg?\nAssistant:",
    "Summary of the meeting on 3 March:",
    "1. Introduction\n\nIn this paper we",
    "Theorem 2. Let G be a finite group",
    "Abstract. We study the effect of",
    "Table 4 shows that the patients who",
    'def read_table(path):\n    """',
    "import os\nimport sys\n\nclass ",
    "#include <stdio.h>\n\nint main(",
    "SELECT name, COUNT(*) FROM orders",
    "function render(items) {\n  const",
    "public class Account {\n    private",
    "## Installation\n\nRun the following",
    "<html>\n<head>\n<title>",
    '{\n  "name": "',
    "error: expected `;`, found",
    "fn main() {\n    let mut",
    "$ git log --oneline",
    "Le conseil municipal a décidé de",
    "Der Zug nach München fährt heute",
    "El gobierno anunció ayer que",
    "La ricetta prevede di cuocere",
    "O time venceu a partida com",
    "Het museum is gevestigd in",
    "在这座城市的中心",
    "日本の首都である東京は",
    "Москва является столицей",
    "Wyniki badań pokazują, że",
    "Kota ini terletak di",
    "Thành phố này nằm ở",
    "تقع المدينة في",
    "भारत की राजधानी",
)
OPENING_TOKENS = 4
GENERATION_BATCH = 128


@torch.no_grad()
def write_itself(model: Any, tokenizer: Any, count: int, length: int, seed: int, reporter: Reporter) -> Tensor:
    """``count`` sequences [count, length] that ``model`` (resident, any device) continues at temperature 1.

    The cache has its whole length from the start: a growing one is copied at every step.

    Each begins with BOS where the tokenizer adds it and the first four tokens of an opening. Special tokens are never drawn.
    """
    bos = bos_prefix(tokenizer)
    heads = [tokenizer(text, add_special_tokens=False).input_ids[:OPENING_TOKENS] for text in OPENINGS]
    heads = [bos + head for head in heads if len(head) == OPENING_TOKENS]
    if not heads or length <= len(bos) + OPENING_TOKENS:
        raise fail(
            "calibration/self",
            "--calibration self",
            saw=f"{len(heads)} openings, sequences of {length} tokens",
            wanted="a tokenizer that reads text, and longer sequences",
            help="--calibration documentation",
        )
    prompts = torch.tensor([heads[i % len(heads)] for i in range(count)])
    banned = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    batches = torch.split(prompts, GENERATION_BATCH)
    written = []
    steps = length - prompts.shape[1]
    total = steps * len(batches)
    ticks = iter(reporter.track(range(total), "model writes calibration text", total))
    for batch in batches:
        written.append(_continue(model, batch, steps, banned, generator, ticks))
    next(ticks, None)
    return torch.cat(written)


def _continue(model: Any, ids: Tensor, steps: int, banned: Tensor, generator: torch.Generator, ticks: Any) -> Tensor:
    device = next(model.parameters()).device
    past, step = StaticCache(config=model.config, max_cache_len=ids.shape[1] + steps), ids
    for _ in range(steps):
        next(ticks)
        out = model(step.to(device), past_key_values=past, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float().cpu()
        logits[:, banned[banned < logits.shape[1]]] = -torch.inf
        step = draw(logits, torch.rand(len(logits), 1, generator=generator))
        ids = torch.cat([ids, step], 1)
    return ids
